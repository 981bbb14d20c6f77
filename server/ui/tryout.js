// A prompt's tokens, each coloured by its share in what a guard takes to fire.

import { at, h, number, percent, plural, say } from "./dom.js";
import { nearness } from "./charts.js";
import { call, reason } from "./api.js";

const VERDICTS = {
  abstain: ["fired", "withholds"],
  shadow: ["warn", "hits, in shadow"],
  allow: ["ok", "lets pass"],
};
const FULL = 0.2; // the least share that has the full colour, where no other token has more

export function begin() {
  at("try-form").addEventListener("submit", judge);
  at("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("try-form").requestSubmit();
  });
}

async function judge(event) {
  event.preventDefault();
  const text = at("prompt").value;
  const chat = new FormData(at("try-form")).get("frame") === "chat";
  const button = at("try-button");
  button.disabled = true;
  say(at("try-said"), "Judging…");
  const body = chat ? { messages: [{ role: "user", content: text }] } : { prompt: text };
  const answer = await call("/v1/attributions", { method: "POST", body });
  button.disabled = false;
  if (answer.status !== 200) {
    at("try-result").replaceChildren(h("p", { class: "note bad" }, reason(answer)));
    say(at("try-said"), reason(answer));
    return;
  }
  const result = answer.body;
  const detectors = result.data.filter((each) => each.parts.length);
  const first = detectors.find((each) => each.verdict === "abstain") ?? detectors.find((each) => each.verdict === "shadow") ?? detectors[0];
  show(result, detectors, first);
  say(at("try-said"), headline(result));
}

function headline(result) {
  const by = result.data.filter((each) => each.verdict === "abstain").map((each) => each.guard);
  if (by.length) return `Withheld by ${by.join(", ")}.`;
  const shadow = result.data.filter((each) => each.verdict === "shadow").map((each) => each.guard);
  return shadow.length ? `Answered; ${shadow.join(", ")} would have withheld it.` : "Answered: no guard fires on this prompt.";
}

function show(result, detectors, chosen) {
  const body = h("div", {});
  const select = (guard) => body.replaceChildren(...explain(result, guard));
  const pick =
    detectors.length < 2
      ? null
      : h(
          "fieldset",
          { class: "segments" },
          h("legend", { class: "sr" }, "Guard"),
          detectors.map((guard) =>
            h("label", {}, h("input", { type: "radio", name: "try-guard", checked: guard === chosen, onchange: () => select(guard) }), h("span", {}, guard.guard)),
          ),
        );
  if (chosen) select(chosen);
  const fired = result.data.some((each) => each.verdict === "abstain");
  at("try-result").replaceChildren(
    h("p", { class: `verdict ${fired ? "fired" : "ok"}`, id: "try-verdict" }, headline(result)),
    ...(pick ? [pick] : []),
    body,
  );
}

/** The part that the verdict is by, or the one nearest to firing. */
const decisive = (guard) => guard.parts.find((part) => part.part === guard.part) ?? guard.parts[0];

function explain(result, guard) {
  const part = decisive(guard);
  const { tokens } = result;
  const share = (i) => part.shares?.[i] ?? null;
  const detail = h("p", { class: "detail soft small" }, "Point at a token, or move through them with the arrow keys.");
  const about = (i) => {
    const own = share(i);
    const said = own === null ? "counts for nothing" : `${percent(own)} of what it takes to fire`;
    return `Token ${i + 1}, ${spelled(tokens[i])}: ${part.shares ? said : `score ${number(part.scores[i])} if the prompt ended here`}.`;
  };
  const points = tokens.map((token, i) => ({
    name: `${i + 1} ${spelled(token)}`,
    value: part.scores[i] <= 0 ? 2 : part.tau / part.scores[i],
    text: number(part.scores[i]),
    more: [share(i) === null ? "–" : percent(share(i))],
  }));
  return [
    h("p", {}, sentence(result, guard, part)),
    flow(tokens, part, about, detail),
    detail,
    legend(part),
    nearness(
      `How near ${guard.guard} comes to firing, token by token`,
      `Score ${number(part.scores.at(-1))} at the prompt's end; it fires at ${number(part.tau)} or less.`,
      points,
      [[0, "first token"], [1, "last token"]],
      part.span,
    ),
    parts(guard),
  ];
}

function sentence(result, guard, part) {
  const [kind, verb] = VERDICTS[guard.verdict];
  const fires = guard.verdict !== "allow";
  const pieces = [
    h("span", { class: `pill ${kind}` }, `${guard.guard} ${verb}`),
    ` Score ${number(guard.score)} against tau ${number(guard.tau)}, by ${naming(part.part)}. `,
  ];
  if (part.shares && part.span) {
    const [from, to] = part.span;
    const sum = part.shares.slice(from, to + 1).reduce((total, each) => total + (each ?? 0), 0);
    const text = result.tokens.slice(from, to + 1).join("").trim();
    pieces.push(
      `${fires ? "The span that fired" : "The span nearest to firing"} is tokens ${from + 1} to ${to + 1}, `,
      h("q", {}, text),
      `, which has ${percent(sum, 0)} of what it takes.`,
    );
  } else if (!part.shares && part.span) {
    pieces.push("This part reads the last token alone; colours show what it would read if the prompt ended earlier.");
  } else if (part.shares) {
    pieces.push("No stretch of the prompt speaks for the skill.");
  }
  return h("span", {}, pieces);
}

const naming = (label) => (label === "" ? "its one part" : `its part “${label.replace(/\n/g, "⏎")}”`);

function spelled(token) {
  return token === "" ? "(nothing)" : `“${token.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/^ | $/g, "␣")}”`;
}

/** All tokens as a list of options: one stop for the tabulator, arrows move within. */
function flow(tokens, part, about, detail) {
  const [from, to] = part.span ?? [-1, -1];
  const full = Math.max(FULL, ...(part.shares ?? [1]).map((each) => Math.abs(each ?? 0)));
  let current = Math.max(0, from);
  const options = tokens.map((token, i) => {
    const own = part.shares ? (part.shares[i] ?? 0) : part.scores[i] <= 0 ? 1 : Math.min(1, part.tau / part.scores[i]);
    const inside = i >= from && i <= to;
    const counts = !part.shares || part.shares[i] !== null;
    const edge = `${i === from ? " first" : ""}${i === to ? " last" : ""}`;
    const text = token.replace(/\n/g, "⏎\n");
    return h(
      "span",
      {
        role: "option",
        id: `token-${i}`,
        "aria-selected": "false",
        "aria-label": about(i),
        class: `token ${own >= 0 ? "for" : "against"}${inside ? ` span${edge}` : ""}${counts ? "" : " mute"}`,
        "--share": `${Math.round(Math.min(1, Math.abs(own) / full) * 100)}%`,
        onpointerenter: () => choose(i),
        onclick: () => choose(i),
      },
      text.trim() === "" && !text.includes("⏎") ? h("span", { class: "blank" }, "·") : text,
    );
  });
  const list = h(
    "div",
    {
      class: "tokens",
      role: "listbox",
      tabindex: "0",
      "aria-label": `${plural(tokens.length, "token")}, coloured by share`,
      onkeydown: (event) => {
        const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity }[event.key];
        if (step === undefined) return;
        event.preventDefault();
        choose(Math.min(tokens.length - 1, Math.max(0, current + step)));
      },
      onfocus: () => choose(current),
    },
    options,
  );
  function choose(i) {
    options[current].setAttribute("aria-selected", "false");
    current = i;
    options[i].setAttribute("aria-selected", "true");
    list.setAttribute("aria-activedescendant", `token-${i}`);
    detail.textContent = about(i);
  }
  return list;
}

function legend(part) {
  if (!part.shares) return h("p", { class: "legend" }, h("span", { class: "for" }, "near to firing"), h("span", { class: "edge" }, "judged"));
  return h(
    "p",
    { class: "legend" },
    h("span", { class: "for" }, "speaks for the skill"),
    h("span", { class: "against" }, "speaks against it"),
    h("span", { class: "edge" }, "the span that is judged"),
  );
}

function parts(guard) {
  const rows = guard.parts.map((part) => {
    const last = part.scores.at(-1);
    const ratio = last / part.tau;
    return h(
      "tr",
      {},
      h("th", { scope: "row" }, part.part === "" ? "the guard" : part.part.replace(/\n/g, "⏎")),
      h("td", { class: "num" }, number(last)),
      h("td", { class: "num" }, number(part.tau)),
      h("td", {}, last <= part.tau ? "fires" : Number.isFinite(ratio) ? `passes, at ${number(ratio)} times tau` : "passes"),
    );
  });
  return h(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": "Parts of the guard at the prompt's end" },
    h(
      "table",
      {},
      h("caption", {}, "Each part at the prompt's end"),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Part"), h("th", { scope: "col", class: "num" }, "Score"), h("th", { scope: "col", class: "num" }, "Tau"), h("th", { scope: "col" }, "Reading"))),
      h("tbody", {}, rows),
    ),
  );
}
