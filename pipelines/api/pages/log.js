// What was decided, the newest first, each with its undo.

import * as api from "./api.js";
import { element, many } from "./dom.js";

const PAGE = 50;
let length = PAGE;

export async function renderLog(app) {
  const results = [];
  let total = 0;
  while (results.length < length) {
    const limit = Math.min(PAGE, length - results.length);
    const page = await api.call("GET", `decisions/?class_id=${app.classId}&limit=${limit}&offset=${results.length}`);
    results.push(...page.results);
    total = page.total;
    if (results.length >= total || !page.results.length) break;
  }
  return [
    element("h2", { tabindex: -1 }, "Log"),
    element("p", { class: "quiet" }, `${many(total, "decision")}, the newest first.`),
    element("ol", { class: "log" }, results.map((decision) => entry(app, decision))),
    results.length < total &&
      element("button", { type: "button", "data-focus": "log-more", click: () => { length += PAGE; app.render(); } }, "Older ones"),
  ].filter(Boolean);
}

function entry(app, decision) {
  const sentence = app.readable(decision.sentence);
  return element(
    "li",
    { class: decision.in_force ? "" : "undone" },
    element(
      "p",
      {},
      sentence,
      !decision.in_force && element("strong", {}, ` Undone by decision ${decision.undone_by}.`),
      decision.reason && element("span", { class: "quiet" }, ` “${decision.reason}”`),
      element("br"),
      element(
        "small",
        {},
        `${decision.id} · ${decision.decided_by} · `,
        element("time", { datetime: decision.decided_at }, new Date(decision.decided_at).toLocaleString()),
      ),
    ),
    decision.can_be_undone &&
      element(
        "button",
        {
          type: "button",
          "aria-label": `Undo decision ${decision.id}: ${sentence}`,
          "data-focus": `undo-${decision.id}`,
          click: () => app.decide(`decision ${decision.id} is undone`, [() => api.undo(decision.id)]),
        },
        "Undo",
      ),
  );
}
