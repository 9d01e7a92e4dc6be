// Students by sessions: what each cell says, why, and what a person says instead.

import * as api from "./api.js";
import { bdi, element, faceImage, many } from "./dom.js";

const SYMBOLS = { present: "✓", absent: "✗", unsure: "?", excused: "E", unknown: "●", visitor: "V" };
const MARKS = { photos: "What the photos say", present: "Present", absent: "Absent", excused: "Excused" };
const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

export function renderRegister(app) {
  const rows = [...app.students.values()].filter((student) => student.in_register);
  const { sessions, cells } = app.review;
  const title = element("h2", { tabindex: -1, id: "register-title" }, "Register");
  if (!rows.length || !sessions.length) return [title, element("p", {}, "No session has been processed yet.")];
  const cellOf = new Map(cells.map((cell) => [`${cell.student_id}-${cell.session_id}`, cell]));
  const table = element(
    "table",
    { keydown: goOn, "aria-labelledby": "register-title", "aria-describedby": "register-help" },
    element(
      "thead",
      {},
      element("tr", {}, element("th", { scope: "col" }, "Student"), sessions.map((s) => element("th", { scope: "col" }, s.name)), element("th", { scope: "col" }, "Rate")),
    ),
    element(
      "tbody",
      {},
      rows.map((student) =>
        element(
          "tr",
          {},
          element("th", { scope: "row" }, bdi(student.label)),
          sessions.map((session) => {
            const cell = cellOf.get(`${student.student_id}-${session.session_id}`);
            return element("td", { class: cell ? `cell ${cell.status}` : "" }, cell ? cellButton(app, student, session, cell) : "");
          }),
          element("td", {}, student.counted ? `${Math.round((100 * student.present) / student.counted)} %` : ""),
        ),
      ),
    ),
    element(
      "tfoot",
      {},
      element("tr", {}, element("th", { scope: "row" }, "Present"), sessions.map((session) => element("td", {}, String(session.counts.present))), element("td")),
    ),
  );
  const help = element("p", { class: "quiet", id: "register-help" }, "Press a cell to see why it says what it says, or to set it by hand (✎).");
  return [title, help, element("div", { class: "scroll", role: "region", "aria-labelledby": "register-title" }, table)];
}

function cellButton(app, student, session, cell) {
  return element(
    "button",
    {
      type: "button",
      "data-focus": `cell-${cell.student_id}-${cell.session_id}`,
      "aria-label": `${student.label}, ${session.name}: ${cell.status}${cell.mark ? ", by hand" : ""}`,
      click: () => showCell(app, student, session, cell),
    },
    element("span", { class: "symbol" }, SYMBOLS[cell.status]),
    element("span", { class: "word" }, cell.status),
    cell.mark && element("span", {}, "✎"),
  );
}

/** Arrow keys go from cell to cell; Tab goes through them too. */
function goOn(event) {
  const step = STEPS[event.key];
  const td = event.target.closest("td");
  if (!step || !td) return;
  const row = td.parentElement;
  const rows = [...row.parentElement.children];
  const to = rows[rows.indexOf(row) + step[0]]?.children[td.cellIndex + step[1]]?.querySelector("button");
  if (!to) return;
  event.preventDefault();
  to.focus();
}

function showCell(app, student, session, cell) {
  const dialog = document.getElementById("cell-dialog");
  const status = cell.mark ? cell.status : "photos";
  const note = element("input", { type: "text", dir: "auto", maxlength: 2000, value: cell.mark?.note ?? "" });
  const evidence = (cropIds, title) =>
    cropIds.length > 0 && [
      element("h3", {}, title),
      element(
        "ul",
        { class: "evidence" },
        cropIds.map((id) =>
          element("li", {}, faceImage(id, app.faceText(id)), element("p", {}, app.readable(app.faces.get(id).why))),
        ),
      ),
    ];
  const open = cell.crop_ids.filter((id) => !app.faces.get(id).confirmed);
  const decide = (title, steps) => app.decide(title, steps, { saved: () => dialog.close() });
  const marks = element(
    "form",
    {
      submit: (event) => {
        event.preventDefault();
        const chosen = new FormData(marks).get("status");
        const title = chosen === "photos" ? `the photos say of ${student.label} in ${session.name}` : `${student.label} was ${chosen} in ${session.name}`;
        decide(title, [() => api.mark(session.session_id, student.student_id, chosen === "photos" ? null : chosen, note.value.trim())]);
      },
    },
    element(
      "fieldset",
      {},
      element("legend", {}, "By hand"),
      Object.entries(MARKS).map(([value, text]) =>
        element("label", {}, element("input", { type: "radio", name: "status", value, checked: value === status }), ` ${text}`),
      ),
      element("label", { class: "field" }, "Note ", note),
      element("button", { class: "main" }, "Save"),
    ),
  );
  dialog.replaceChildren(
    element(
      "div",
      { class: "head" },
      element("h2", { id: "cell-title" }, bdi(student.label), `, ${session.name}: ${cell.status}`),
      element("form", { method: "dialog" }, element("button", {}, "Close")),
    ),
    ...cell.why.map((sentence) => element("p", {}, app.readable(sentence))),
    marks,
    ...[evidence(cell.crop_ids, "Faces that show them"), evidence(cell.doubtful_ids, "Faces that may show them")].flat().filter(Boolean),
    ...(open.length
      ? [
          element(
            "button",
            { type: "button", click: () => decide(`${many(open.length, "face")} of ${student.label} confirmed`, [() => api.confirmCrops(student.student_id, open)]) },
            open.length === 1 ? "Confirm the face" : `Confirm ${open.length} faces`,
          ),
        ]
      : []),
  );
  // The page may have been shown anew meanwhile: the focus goes to the same cell, which is another element then.
  const key = `cell-${cell.student_id}-${cell.session_id}`;
  dialog.addEventListener("close", () => document.querySelector(`[data-focus="${key}"]`)?.focus(), { once: true });
  dialog.showModal();
}
