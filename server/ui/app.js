// Signs in, asks the server every few seconds, and hands on what it says.

import { at, say } from "./dom.js";
import { call, key, reason } from "./api.js";
import * as guards from "./guards.js";
import * as traffic from "./traffic.js";
import * as tryout from "./tryout.js";

const EVERY_MS = 4000;
const READY = { ready: ["ok", "ready"], starting: ["warn", "loading"], verifying: ["warn", "verifying"], failed: ["bad", "not serving"], dead: ["bad", "stopped working"], stopping: ["warn", "stopping"] };
let paused = false;
let timer = null;
let asking = null;

const announce = (text) => say(at("said"), text);

/** Asks once at a time; whoever asks meanwhile waits for a fresh round. */
function refresh() {
  asking = (asking ?? Promise.resolve()).then(round, round);
  return asking;
}

async function round() {
  const limit = at("window").value;
  const [ready, session] = await Promise.all([call("/ready"), call("/ui/session")]);
  status(ready);
  if (session.status !== 200) return alarm(reason(session));
  const mine = session.body.role;
  if (mine === null) return enter("This key is not known to the server.");
  if (mine === "metrics") return enter("A key of role metrics reads /metrics only; use one of role operator or admin.");
  at("enter").hidden = true;
  const [listed, models] = await Promise.all([call("/v1/guards"), call("/v1/models")]);
  at("leave").hidden = key.get() === null;
  if (listed.status !== 200) return alarm(reason(listed));
  alarm("");
  const rows = listed.body.data;
  const operator = mine !== "user";
  const asked = [operator ? call(`/v1/verdicts?limit=${limit}`) : null, mine === "admin" ? call("/admin/guards") : null];
  const [verdicts, admin] = await Promise.all(asked);
  const watched = verdicts?.status === 200;
  for (const id of ["traffic", "try", "verdicts"]) at(id).hidden = !watched;
  at("content").hidden = at("nav").hidden = at("pause").hidden = false;
  for (const link of at("nav").children) link.hidden = at(link.hash.slice(1)).hidden;
  role(operator, verdicts);
  const changeable = admin?.status === 200 ? new Map(admin.body.guards.map((row) => [row.name, row])) : null;
  const answers = watched ? verdicts.body.data : null;
  guards.show(rows, changeable, answers, unchangeable(admin));
  if (watched) traffic.show(answers, verdicts.body.all_tenants);
  const model = models.body?.data?.[0]?.id;
  const version = admin?.status === 200 ? `policy ${admin.body.policy_version}` : null;
  say(at("served"), [model, version].filter(Boolean).join(" · "));
}

function unchangeable(admin) {
  if (admin?.status === 404) return "A preview only: this server takes no changes while it runs.";
  return admin === null ? "A preview only: changes take a key of role admin." : reason(admin);
}

function role(operator, verdicts) {
  const note = at("role");
  const taken = key.get() === null ? "This server takes everybody for a user, who sees" : "With this key you see";
  if (!operator) say(note, `${taken} which guards there are. Scores, traffic and try-outs are for the role operator.`);
  else if (verdicts.status !== 200) say(note, reason(verdicts));
  else say(note, "");
  note.hidden = note.textContent === "";
}

function status(ready) {
  const pill = at("status");
  const [kind, text] = READY[ready.body?.status] ?? ["bad", "not reached"];
  pill.className = `pill ${kind}`;
  say(pill, text);
  pill.hidden = false;
}

function alarm(text) {
  const place = at("alert");
  say(place, text);
  place.className = text ? "note bad" : "";
}

function enter(why) {
  const wrong = key.get() !== null;
  key.forget();
  at("content").hidden = at("nav").hidden = at("pause").hidden = at("leave").hidden = true;
  const shown = !at("enter").hidden;
  at("enter").hidden = false;
  alarm(wrong ? why : "");
  if (!shown || wrong) at("key").focus();
}

function schedule() {
  clearTimeout(timer);
  timer = setTimeout(async () => {
    if (!paused && !document.hidden && at("enter").hidden) await refresh();
    schedule();
  }, EVERY_MS);
}

at("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  key.set(at("key").value.trim());
  at("key").value = "";
  await refresh();
  if (at("enter").hidden) {
    announce("Signed in.");
    at("main").focus();
  }
});
at("leave").addEventListener("click", async () => {
  key.forget();
  at("guard-cards").replaceChildren();
  at("guard-cards").dataset.names = "";
  at("try-result").replaceChildren();
  at("prompt").value = "";
  await refresh();
  announce("The key is forgotten.");
});
at("pause").addEventListener("click", () => {
  paused = !paused;
  at("pause").setAttribute("aria-pressed", String(paused));
  if (!paused) refresh();
});
at("window").addEventListener("change", refresh);
guards.listen(announce, refresh);
tryout.begin();
await refresh();
schedule();
