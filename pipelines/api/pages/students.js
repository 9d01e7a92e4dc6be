// Everybody with their faces: confirm them, take one off, give some to somebody else, make two students one.

import * as api from "./api.js";
import { bdi, combobox, element, faceImage, faceToggle, many, namedBy, plain } from "./dom.js";

const SHOWN = 12;

// What was chosen and typed, for when the list is shown anew.
const chosen = new Set();
const opened = new Set();
const all = new Set();
let wanted = "";

const KINDS = { student: "", unknown: "no name yet", visitor: "visitor" };

export function renderStudents(app) {
  const people = [...app.students.values()];
  const cards = people.map((student) => [student, card(app, student)]);
  const none = element("p", {}, people.length ? "Nobody of that name." : "There is nobody yet.");
  const filter = () => {
    for (const [student, shown] of cards) shown.hidden = !plain(student.label).includes(plain(wanted));
    none.hidden = cards.some(([, shown]) => !shown.hidden);
  };
  const search = element("input", {
    type: "search",
    dir: "auto",
    "data-focus": "students-search",
    input: () => { wanted = search.value; filter(); },
  });
  search.value = wanted;
  filter();
  return [
    element("h2", { tabindex: -1 }, "Students"),
    element("p", {}, element("label", { class: "field" }, "Find ", search)),
    none,
    element("div", { class: "students" }, cards.map(([, shown]) => shown)),
  ];
}

function card(app, student) {
  const id = student.student_id;
  const open = confirmable(app, student).length;
  const note = [
    KINDS[student.kind],
    student.student_number,
    many(student.crop_ids.length + student.portrait_ids.length, "face"),
    open ? `${open} not confirmed` : student.crop_ids.length > 0 && "all confirmed",
    student.counted > 0 && `present in ${student.present} of ${student.counted}`,
  ].filter(Boolean);
  const details = element(
    "details",
    { class: "card", "data-student": id, toggle: () => { if (details.open) show(); } },
    element("summary", { "data-focus": `student-${id}` }, element("strong", {}, bdi(student.label)), ` ${note.join(" · ")}`),
  );
  // Faces are made when somebody looks at them: a class has thousands.
  function show() {
    opened.add(id);
    if (details.children.length === 1) details.append(...body(app, student));
  }
  details.addEventListener("toggle", () => { if (!details.open) opened.delete(id); });
  if (opened.has(id)) {
    details.open = true;
    show();
  }
  return details;
}

const confirmable = (app, student) => student.crop_ids.filter((cropId) => !app.faces.get(cropId).confirmed);

function body(app, student) {
  const id = student.student_id;
  const shown = all.has(id) ? student.crop_ids : student.crop_ids.slice(0, SHOWN);
  const mine = () => shown.filter((cropId) => chosen.has(cropId));
  const open = shown.filter((cropId) => !app.faces.get(cropId).confirmed);
  const tools = element("div", { class: "tools", role: "group" });
  const others = [...app.students.values()].filter((other) => other.student_id !== id);
  const options = others.map((other) => ({ ...other, note: other.student_number ?? KINDS[other.kind] }));


  function showTools() {
    const crops = mine();
    const begun = tools.querySelector("input")?.value ?? "";
    tools.hidden = !crops.length;
    if (!crops.length) return tools.replaceChildren();
    const faces = many(crops.length, "chosen face");
    tools.setAttribute("aria-label", faces);
    const field = combobox({ label: `Whose ${crops.length === 1 ? "is" : "are"} the ${faces}?`, students: options, value: begun, chosen: () => move(), key: `move-${id}` });
    const done = (title, steps) =>
      app.decide(title, steps, {
        saved: () => {
          field.input.value = "";
          crops.forEach((cropId) => chosen.delete(cropId));
        },
      });
    const move = () => {
      const text = field.input.value;
      const to = namedBy(text, others);
      if (to) return done(`${faces} moved to ${to.label}`, [() => api.confirmCrops(to.student_id, crops)]);
      return done(`${faces} split off as ${text.trim() || "a new person"}`, [() => api.split(id, crops, text.trim() || null)]);
    };
    return tools.replaceChildren(
      element("div", { class: "field" }, field.root, element("button", { type: "button", click: move }, "Move or split")),
      element("p", { class: "quiet" }, "A new name, or none, splits them off as a new person."),
      element(
        "div",
        { class: "actions" },
        element(
          "button",
          { type: "button", click: () => done(`${faces} ${crops.length === 1 ? "is" : "are"} not ${student.label}`, crops.map((cropId) => () => api.reject(cropId, id))) },
          "Not ",
          bdi(student.label),
        ),
        element(
          "button",
          { type: "button", click: () => done(`${faces}: no face`, [() => api.notFaces(crops)]) },
          "Not a face",
        ),
      ),
    );
  }
  showTools();

  const name = combobox({ label: "Another name", students: [], chosen: () => give(), key: `rename-${id}` });
  const give = () => {
    const text = name.input.value.trim();
    if (!text) return name.input.focus();
    return app.decide(`${student.label} is called ${text}`, [() => api.rename(id, text)], { saved: () => { name.input.value = ""; } });
  };
  const other = combobox({ label: "Is the same person as", students: options, chosen: () => join(), key: `merge-${id}` });
  const join = () => {
    const into = namedBy(other.input.value, others);
    if (!into) return other.input.focus();
    return app.decide(`${student.label} and ${into.label} are one`, [() => api.merge(id, into.student_id)], { saved: () => { other.input.value = ""; } });
  };
  return [
    ...student.history.map((sentence) => element("p", { class: "quiet" }, app.readable(sentence))),
    student.portrait_ids.length > 0 &&
      element("div", { class: "faces" }, student.portrait_ids.map((cropId) => faceImage(cropId, `Portrait of ${student.label}`))),
    element(
      "div",
      { class: "faces" },
      shown.map((cropId) => {
        const { confirmed } = app.faces.get(cropId);
        return faceToggle(cropId, app.faceText(cropId), {
          kind: "choose",
          pressed: chosen.has(cropId),
          badge: confirmed && element("span", { class: "badge", title: "confirmed" }, "✓"),
          change: (is) => { if (is) chosen.add(cropId); else chosen.delete(cropId); showTools(); },
          key: `face-${cropId}`,
        });
      }),
    ),
    shown.length < student.crop_ids.length &&
      element(
        "button",
        { type: "button", "data-focus": `all-${id}`, click: () => { all.add(id); app.render(); } },
        `Show all ${student.crop_ids.length} faces`,
      ),
    tools,
    element(
      "div",
      { class: "actions" },
      open.length > 0 &&
        element(
          "button",
          {
            type: "button",
            class: "main",
            "data-focus": `confirm-${id}`,
            click: () => app.decide(`${many(open.length, "face")} of ${student.label} confirmed`, [() => api.confirmCrops(id, open)]),
          },
          open.length === 1 ? "Confirm the face" : `Confirm all ${open.length} that are shown`,
        ),
      student.kind !== "visitor" &&
        element(
          "button",
          { type: "button", "data-focus": `hide-${id}`, click: () => app.decide(`${student.label} is a visitor`, [() => api.hide(id)]) },
          "Is a visitor",
        ),
    ),
    element("div", { class: "field" }, name.root, element("button", { type: "button", click: give }, "Rename")),
    element("div", { class: "field" }, other.root, element("button", { type: "button", click: join }, "Merge")),
  ].filter(Boolean);
}
