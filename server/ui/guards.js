// One card for each guard: its state, how near traffic comes to it, and what another threshold would do.

import { at, h, number, percent, plural, say } from "./dom.js";
import { histogram } from "./charts.js";
import { call, reason } from "./api.js";

const LEAST = 0.5;
const MOST = 2;
const STEP = 0.01;
const MODES = [
  ["enforce", "Enforce", "Its hits are withheld."],
  ["shadow", "Shadow", "Its hits are counted and answered."],
  ["off", "Off", "Its hits count for nothing."],
];
// Edges of score over the artifact's tau: even in ratio, with 1 among them.
const EDGES = Array.from({ length: 19 }, (_, i) => 2 ** ((i - 6) / 3));

const cards = new Map();
let announce = () => {};
let changed = () => {};

export function listen(onSaid, onChanged) {
  announce = onSaid;
  changed = onChanged;
}

/** `guards`: rows of /v1/guards. `admin`: rows of /admin/guards by name, or null. `why`: why nothing can be changed. */
export function show(guards, admin, answers, why) {
  const names = guards.map((guard) => guard.name).join("\n");
  const list = at("guard-cards");
  if (list.dataset.names !== names) {
    cards.clear();
    for (const guard of guards) cards.set(guard.name, new Card(guard));
    list.replaceChildren(...[...cards.values()].map((card) => card.element));
    list.dataset.names = names;
  }
  for (const guard of guards) cards.get(guard.name).update(guard, admin?.get(guard.name) ?? null, answers, why);
}

/** How many of the artifact's taus a guard's taus are, where that is one number for all. */
function factorOf(row) {
  if (!row?.taus?.length || row.artifact_taus?.length !== row.taus.length) return 1;
  const factors = row.taus.map((tau, i) => tau / row.artifact_taus[i]);
  return factors.every((each) => Math.abs(each - factors[0]) < 1e-6 * factors[0]) ? factors[0] : null;
}

class Card {
  constructor(guard) {
    this.name = guard.name;
    this.detects = guard.kind === "detector";
    this.staged = { factor: null, mode: null };
    const id = `guard-${guard.name.replace(/[^A-Za-z0-9_-]/g, "-")}`;
    this.mode = h("span", { class: "pill" });
    this.proof = h("span", { class: "pill" });
    this.trouble = h("p", { class: "note bad", hidden: true });
    this.facts = h("dl", { class: "facts" });
    this.charts = h("div", { class: "charts" });
    this.element = h(
      "article",
      { class: "panel card", "aria-labelledby": id },
      h("div", { class: "heading" }, h("h3", { id }, guard.name), h("p", { class: "pills" }, this.mode, this.proof)),
      h("p", { class: "soft" }, `Forgets ${guard.skill} · ${guard.method}${this.detects ? "" : ", an intervention"}`),
      this.trouble,
      this.charts,
      this.detects ? this.controls(id) : null,
      h("details", {}, h("summary", {}, "Details"), this.facts),
    );
  }

  controls(id) {
    this.slider = h("input", {
      type: "range", min: LEAST, max: MOST, step: STEP, value: 1, id: `${id}-tau`,
      "aria-describedby": `${id}-preview`,
      oninput: () => this.stage({ factor: Number(this.slider.value) }),
    });
    this.value = h("output", { for: `${id}-tau`, class: "value" });
    this.preview = h("p", { id: `${id}-preview`, class: "preview" });
    this.radios = MODES.map(([mode, text, hint]) => [
      mode,
      h("input", { type: "radio", name: `${id}-mode`, value: mode, onchange: () => this.stage({ mode }) }),
      text,
      hint,
    ]);
    this.modes = h(
      "fieldset",
      { class: "segments" },
      h("legend", { class: "sr" }, `Mode of ${this.name}`),
      this.radios.map(([, radio, text, hint]) => h("label", { title: hint }, radio, h("span", {}, text))),
    );
    this.reset = h("button", { type: "button", class: "quiet", onclick: () => this.unstage() }, "Reset");
    this.apply = h("button", { type: "submit" }, "Apply");
    this.said = h("p", { class: "soft small" });
    this.form = h(
      "form",
      { class: "controls", "aria-label": `Threshold and mode of ${this.name}`, onsubmit: (event) => this.send(event), hidden: true },
      h("div", { class: "row" }, h("label", { for: `${id}-tau` }, "Threshold"), this.value),
      this.slider,
      h("div", { class: "ticks", "aria-hidden": "true" }, h("span", {}, "0.5 · fires less"), h("span", {}, "2 · fires more")),
      this.preview,
      h("div", { class: "row wrap" }, this.modes, h("span", { class: "buttons" }, this.reset, this.apply)),
      this.said,
    );
    return this.form;
  }

  update(guard, admin, answers, why) {
    this.guard = guard;
    this.admin = admin;
    this.answers = answers;
    this.why = why;
    const mode = admin?.mode ?? guard.mode;
    say(this.mode, this.detects ? { enforce: "enforced", shadow: "shadow", off: "off" }[mode] : mode === "off" ? "off" : "acts");
    this.mode.className = `pill ${mode === "enforce" || !this.detects ? "plain" : "warn"}`;
    say(this.proof, guard.verified ? "verified" : "not verified");
    this.proof.className = `pill ${guard.verified ? "ok" : "bad"}`;
    this.trouble.hidden = !guard.reason && guard.template !== "accepted";
    say(this.trouble, guard.reason ?? (guard.template === "accepted" ? "Served with another chat template or tokenizer than it was calibrated with." : ""));
    this.tell(guard, admin);
    this.draw();
  }

  tell(guard, admin) {
    const rows = [
      ["Scope", { prompt: "prompts", generation: "answers", both: "prompts and answers" }[guard.scope]],
      ["Chat template", guard.template],
      ["Calibrated for", guard.frames.map((frame) => (frame === "chat" ? "chat" : JSON.stringify(frame))).join(", ")],
    ];
    if (guard.layers) rows.push(["Layers", guard.layers.join(", ")]);
    if (admin?.taus?.length) rows.push(["Taus", admin.taus.map(number).join(", ")], ["Artifact's taus", admin.artifact_taus.map(number).join(", ")]);
    if (guard.digest) rows.push(["Artifact", guard.digest.slice(0, 16)]);
    const text = JSON.stringify(rows);
    if (this.facts.dataset.told === text) return;
    this.facts.dataset.told = text;
    this.facts.replaceChildren(...rows.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))]));
  }

  get current() {
    return factorOf(this.admin);
  }

  get factor() {
    return this.staged.factor ?? this.current ?? 1;
  }

  get shownMode() {
    return this.staged.mode ?? this.admin?.mode ?? this.guard.mode;
  }

  stage(change) {
    Object.assign(this.staged, change);
    if (this.staged.factor !== null && this.current !== null && Math.abs(this.staged.factor - this.current) < STEP / 2) this.staged.factor = null;
    if (this.staged.mode === (this.admin?.mode ?? this.guard.mode)) this.staged.mode = null;
    this.draw();
  }

  unstage() {
    this.staged = { factor: null, mode: null };
    this.draw();
    this.slider.focus();
  }

  /** Scores of prompts over the artifact's tau, and whether the guard fired on the prompt. */
  readings() {
    return this.answers.flatMap((answer) => answer.guards.filter((each) => each.guard === this.name && each.digest === this.guard.digest && each.over_tau !== null));
  }

  draw() {
    if (!this.detects || this.answers === null) return;
    this.form.hidden = false;
    const found = this.readings();
    const factor = this.factor;
    if (document.activeElement !== this.slider) this.slider.value = String(factor);
    say(this.value, `${factor.toFixed(2)} × the artifact's`);
    this.slider.setAttribute("aria-valuetext", `${factor.toFixed(2)} times the artifact's threshold`);
    say(this.preview, this.foretell(found, factor));
    this.figures(found, factor);
    const may = this.admin !== null;
    const dirty = this.staged.factor !== null || this.staged.mode !== null;
    for (const [mode, radio] of this.radios) {
      radio.checked = mode === this.shownMode;
    }
    this.modes.hidden = this.apply.hidden = !may;
    this.apply.disabled = !may || !dirty;
    this.reset.disabled = !dirty;
    say(this.said, may ? (this.current === null ? "Its taus were set one by one; applying a factor sets all of them." : "") : this.why);
  }

  foretell(found, factor) {
    if (!found.length) return "No prompt was judged yet, so there is nothing to preview.";
    // By the thresholds in force: what fired when it was judged may have been under others.
    const before = this.current ?? 1;
    const now = found.filter((each) => each.over_tau <= before).length;
    const then = found.filter((each) => each.over_tau <= factor).length;
    const word = this.shownMode === "enforce" ? "refused" : "hit";
    const difference = then - now;
    const change = difference === 0 ? "as now" : difference > 0 ? `${difference} more than now` : `${-difference} fewer than now`;
    return `Of the last ${plural(found.length, "prompt")} ${then} would be ${word} (${percent(then / found.length)}), ${change}.`;
  }

  figures(found, factor) {
    const state = `${found.length} ${factor} ${found[0]?.over_tau} ${found.at(-1)?.over_tau}`;
    if (this.drawn === state) return;
    this.drawn = state;
    const open = [...this.charts.querySelectorAll("details")].map((each) => each.open);
    if (!found.length) {
      this.charts.replaceChildren();
      return;
    }
    const drawn = [this.ratios(found, factor)];
    const placed = found.filter((each) => each.quantile);
    if (placed.length) drawn.push(this.quantiles(placed));
    this.charts.replaceChildren(...drawn);
    this.charts.querySelectorAll("details").forEach((each, i) => (each.open = open[i] ?? false));
  }

  ratios(found, factor) {
    const counts = Array(EDGES.length + 1).fill(0);
    for (const each of found) counts[EDGES.filter((edge) => each.over_tau > edge).length] += 1;
    const bins = counts.map((count, i) => ({
      name: i === 0 ? `up to ${number(EDGES[0])}` : i === EDGES.length ? `above ${number(EDGES.at(-1))}` : `${number(EDGES[i - 1])} to ${number(EDGES[i])}`,
      count,
      kind: (EDGES[i] ?? Infinity) <= factor * 1.0001 ? "fires" : "plain",
    }));
    const line = 1 + 6 + 3 * Math.log2(factor);
    const inside = found.filter((each) => each.over_tau <= factor).length;
    return histogram(
      "Scores of prompts over tau",
      `${inside} of ${found.length} prompts lie at or below the threshold, ${factor.toFixed(2)} times the artifact's.`,
      bins,
      [0.25, 0.5, 1, 2, 4, 8, 16].map((each) => [(7 + 3 * Math.log2(each)) / (EDGES.length + 1), String(each)]),
      { line, of: `${this.name}: `, head: ["Score over tau", "Prompts"], legend: [["fires", "fires"], ["plain", "passes"], ["tau", "tau"]] },
    );
  }

  quantiles(found) {
    const counts = Array(20).fill(0);
    for (const each of found) counts[Math.min(19, Math.floor(((each.quantile[0] + each.quantile[1]) / 2) * 20))] += 1;
    const bins = counts.map((count, i) => ({ name: `${i * 5} to ${i * 5 + 5} %`, count }));
    return histogram(
      "Quantiles among the skill-free texts of its calibration",
      `${counts[0]} of ${found.length} prompts lie in the lowest twentieth; even traffic has ${number(found.length / 20)}.`,
      bins,
      [[0, "0"], [0.25, "25 %"], [0.5, "50 %"], [0.75, "75 %"], [1, "100 %"]],
      { even: found.length / 20, of: `${this.name}: `, head: ["Quantile", "Prompts"], legend: [["plain", "prompts"], ["even", "as at calibration"]] },
    );
  }

  async send(event) {
    event.preventDefault();
    if (!this.admin) return;
    const body = {};
    if (this.staged.factor !== null) body.taus = this.admin.artifact_taus.map((tau) => tau * this.staged.factor);
    if (this.staged.mode !== null) body.mode = this.staged.mode;
    if (!Object.keys(body).length) return;
    this.apply.disabled = true;
    const answer = await call(`/admin/guards/${encodeURIComponent(this.name)}`, { method: "PATCH", body });
    if (answer.status !== 200) {
      this.draw();
      this.said.textContent = reason(answer);
      announce(`${this.name} was not changed. ${reason(answer)}`);
      return;
    }
    const what = [body.taus ? `its threshold is ${this.staged.factor.toFixed(2)} times the artifact's` : null, body.mode ? `its mode is ${body.mode}` : null];
    this.staged = { factor: null, mode: null };
    await changed();
    announce(`${this.name}: ${what.filter(Boolean).join(", and ")}.`);
    this.said.textContent = "Changed. It counts from the next request on.";
    this.slider.focus();
  }
}
