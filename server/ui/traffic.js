// The abstention rate over the last answers, and the answers themselves, without text.

import { at, clock, h, number, percent, plural, say, whole } from "./dom.js";
import { columns } from "./charts.js";

const BINS = 24;
const PAGE = 25;
const OUTCOMES = { answered: "answered", abstained: "withheld", error: "error", given_up: "given up" };
let rows = PAGE;

export function show(answers, allTenants) {
  figures(answers);
  rate(answers);
  verdicts(answers, allTenants);
}

function figures(answers) {
  const of = (outcome) => answers.filter((each) => each.outcome === outcome).length;
  const shadow = answers.filter((each) => each.guards.some((guard) => guard.verdict === "shadow")).length;
  const span = answers.length > 1 ? answers[0].time - answers.at(-1).time : 0;
  const told = [
    ["Withheld", answers.length ? percent(of("abstained") / answers.length) : "–", plural(of("abstained"), "answer")],
    ["Answers", whole(answers.length), span > 0 ? `in ${duration(span)}` : ""],
    ["Shadow hits", whole(shadow), "counted, and answered"],
    ["Errors", whole(of("error")), of("error") ? "see the log" : "none"],
  ];
  const list = at("figures");
  if (!list.children.length) list.append(...told.map(([name]) => h("div", {}, h("dt", {}, name), h("dd", {}), h("dd", { class: "soft small" }))));
  told.forEach(([, value, more], i) => {
    const [, big, small] = list.children[i].children;
    say(big, value);
    say(small, more);
  });
}

function duration(seconds) {
  if (seconds < 90) return plural(Math.max(1, Math.round(seconds)), "second");
  if (seconds < 5400) return plural(Math.round(seconds / 60), "minute");
  return plural(Math.round(seconds / 3600), "hour");
}

function rate(answers) {
  const place = at("rate");
  const state = `${answers.length} ${answers[0]?.request} ${answers.at(-1)?.request}`;
  if (place.dataset.state === state) return;
  place.dataset.state = state;
  if (!answers.length) {
    place.replaceChildren(h("p", { class: "soft" }, "No answer yet. Send the server a request, and it shows here within seconds."));
    return;
  }
  const first = answers.at(-1).time;
  const last = answers[0].time;
  const step = Math.max((last - first) / BINS, 0.001);
  const bins = Array.from({ length: BINS }, (_, i) => ({ name: clock(first + i * step), parts: [["fires", 0], ["plain", 0], ["broken", 0]] }));
  for (const each of answers) {
    const bin = bins[Math.min(BINS - 1, Math.floor((each.time - first) / step))];
    bin.parts[each.outcome === "abstained" ? 0 : each.outcome === "error" ? 2 : 1][1] += 1;
  }
  const withheld = answers.filter((each) => each.outcome === "abstained").length;
  const open = place.querySelector("details")?.open ?? false;
  place.replaceChildren(
    columns(
      "Answers over time",
      `${withheld} of ${answers.length} answers were withheld between ${clock(first)} and ${clock(last)}.`,
      bins,
      [[0, clock(first)], [0.5, clock((first + last) / 2)], [1, clock(last)]],
      [["fires", "withheld"], ["plain", "answered"], ["broken", "error"]],
      ["From", "Withheld", "Answered", "Error"],
    ),
  );
  place.querySelector("details").open = open;
}

function verdicts(answers, allTenants) {
  say(at("verdicts-scope"), `Of ${allTenants ? "all tenants" : "your tenant"}, since this process started. No text is kept.`);
  const shown = answers.slice(0, rows);
  const body = at("verdict-rows");
  const state = `${rows} ${answers[0]?.request} ${answers.length}`;
  if (body.dataset.state !== state) {
    body.dataset.state = state;
    body.replaceChildren(...(shown.length ? shown.map(row) : [h("tr", {}, h("td", { colspan: 9, class: "soft" }, "None yet."))]));
  }
  const more = at("verdict-more");
  more.hidden = answers.length <= rows;
  more.onclick = () => {
    rows += PAGE;
    verdicts(answers, allTenants);
  };
}

/** The guard that ended an answer, or hit it in shadow, or else the one nearest to firing. */
function foremost(answer) {
  const order = { abstain: 0, error: 1, shadow: 2, allow: 3 };
  return [...answer.guards].sort((a, b) => order[a.verdict] - order[b.verdict] || (a.over_tau ?? Infinity) - (b.over_tau ?? Infinity))[0];
}

function row(answer) {
  const guard = foremost(answer);
  const where = guard?.stage ? `${guard.stage === "prompt" ? "prompt" : "answer"}, token ${guard.position + 1}` : "–";
  const hit = guard && guard.verdict !== "allow";
  return h(
    "tr",
    {},
    h("td", {}, clock(answer.time)),
    h("td", {}, h("span", { class: `pill ${{ answered: "plain", abstained: "fired", error: "bad", given_up: "plain" }[answer.outcome]}` }, OUTCOMES[answer.outcome])),
    h("td", { class: hit ? "" : "soft" }, guard ? `${guard.guard}${guard.verdict === "shadow" ? " (shadow)" : hit ? "" : " (nearest)"}` : "–"),
    h("td", {}, where),
    h("td", { class: "num" }, number(guard?.score)),
    h("td", { class: "num" }, number(guard?.tau)),
    h("td", {}, answer.tenant),
    h("td", { class: "num" }, `${whole(answer.prompt_tokens)} + ${whole(answer.completion_tokens)}`),
    h("td", { class: "mono" }, answer.request.slice(0, 12)),
  );
}
