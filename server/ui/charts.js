// Charts as plain shapes, each with its numbers in a table for whoever does not see it.

import { h, s } from "./dom.js";

const HEIGHT = 100;

function figure(label, drawing, axis, head, rows, legend, of = "") {
  const table = h(
    "table",
    {},
    h("caption", { class: "sr" }, of + label),
    h("thead", {}, h("tr", {}, head.map((each) => h("th", { scope: "col" }, each)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, row.map((each, i) => h(i ? "td" : "th", i ? {} : { scope: "row" }, each))))),
  );
  return h(
    "figure",
    { class: "chart" },
    h("figcaption", {}, h("span", {}, label), legend ? h("span", { class: "legend" }, legend.map(([kind, text]) => h("span", { class: kind }, text))) : null),
    drawing,
    h("div", { class: "axis", "aria-hidden": "true" }, axis.map(([place, text]) => h("span", { class: side(place), "--at": `${place * 100}%` }, text))),
    h("details", {}, h("summary", {}, "As a table"), h("div", { class: "scroll short", tabindex: "0", role: "region", "aria-label": `${of}${label}, as a table` }, table)),
  );
}

/** Labels at either end stay within the chart. */
const side = (place) => (place === 0 ? "start" : place === 1 ? "end" : "");

const canvas = (width, label, ...shapes) =>
  s("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label }, shapes);

/** Stacked columns. `axis`: [place from 0 to 1, text]. `bins`: {name, parts: [[class, count]…]}. */
export function columns(label, summary, bins, axis, legend, head) {
  const top = Math.max(1, ...bins.map((bin) => bin.parts.reduce((sum, [, count]) => sum + count, 0)));
  const shapes = bins.flatMap((bin, index) => {
    let base = HEIGHT;
    return bin.parts.map(([kind, count]) => {
      const height = (count / top) * (HEIGHT - 4);
      base -= height;
      return s("rect", { class: kind, x: index + 0.08, width: 0.84, y: base, height });
    });
  });
  const rows = bins.map((bin) => [bin.name, ...bin.parts.map(([, count]) => String(count))]);
  return figure(label, canvas(bins.length, summary, shapes), axis, head, rows, legend);
}

/** A histogram with a line at `line`, in bins; `even` draws where every bin would lie if all were alike; `of` names whose it is. */
export function histogram(label, summary, bins, axis, { line = null, even = null, head, legend, of }) {
  const top = Math.max(1, even ?? 0, ...bins.map((bin) => bin.count));
  const bars = bins.map((bin, index) => {
    const height = (bin.count / top) * (HEIGHT - 4);
    return s("rect", { class: bin.kind ?? "plain", x: index + 0.06, width: 0.88, y: HEIGHT - height, height });
  });
  const marks = [];
  if (even !== null) marks.push(rule(0, bins.length, even, top));
  if (line !== null) marks.push(s("line", { class: "tau", x1: line, x2: line, y1: 0, y2: HEIGHT }));
  const rows = bins.map((bin) => [bin.name, String(bin.count)]);
  return figure(label, canvas(bins.length, of + summary, bars, marks), axis, head, rows, legend, of);
}

function rule(from, to, value, top) {
  const y = HEIGHT - (value / top) * (HEIGHT - 4);
  return s("line", { class: "even", x1: from, x2: to, y1: y, y2: y });
}

/** A line over tokens with a threshold at 1. `points`: {name, value}; values above 2 are drawn at 2. */
export function nearness(label, summary, points, axis, span) {
  const y = (value) => HEIGHT - (Math.min(2, Math.max(0, value)) / 2) * HEIGHT;
  const width = Math.max(1, points.length);
  const path = points.map((point, i) => `${i ? "L" : "M"}${i} ${y(point.value)}H${i + 1}`).join("");
  const shapes = [
    span ? s("rect", { class: "span", x: span[0], width: span[1] - span[0] + 1, y: 0, height: HEIGHT }) : null,
    s("line", { class: "tau", x1: 0, x2: width, y1: y(1), y2: y(1) }),
    s("path", { class: "run", d: path }),
  ];
  const rows = points.map((point) => [point.name, point.text, ...point.more]);
  return figure(label, canvas(width, summary, shapes), axis, ["Token", "Score so far", "Share"], rows, [
    ["run", "tau over score"],
    ["tau", "fires from here up"],
  ]);
}
