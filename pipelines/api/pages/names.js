// One sheet for everybody who has no name yet: filled in as far as somebody knows them, and saved together.

import * as api from "./api.js";
import { alike, bdi, combobox, element, faceToggle, isLike, many, namedBy, plain } from "./dom.js";

const SHOWN = 8;

// What is filled in and not saved yet, by student: nothing of it is lost when the sheet is shown anew.
const drafts = new Map();

function draftOf(studentId) {
  if (!drafts.has(studentId)) drafts.set(studentId, { name: "", visitor: false, not: new Set() });
  return drafts.get(studentId);
}

const isFilled = (draft) => draft.visitor || draft.name.trim() !== "";

export function renderNames(app) {
  const people = [...app.students.values()];
  const unnamed = people.filter((student) => student.kind === "unknown" && student.crop_ids.length);
  const title = element("h2", { tabindex: -1 }, "Names");
  const loose = looseFaces(app, people);
  if (!unnamed.length) return [title, element("p", { "data-next": true, tabindex: -1 }, "Everybody has a name."), ...loose];
  const roster = people.filter((student) => student.kind === "student");
  const save = element("button", { class: "main", "data-focus": "names-save" });
  const count = () => {
    const filled = unnamed.filter((student) => isFilled(draftOf(student.student_id))).length;
    save.textContent = filled ? `Save ${many(filled, "person", "people")}` : "Save";
  };
  count();
  const cards = unnamed.map((student) => card(app, student, roster, count));
  // Enter goes on to the next name, so that a sheet is filled in without Tab.
  const fields = cards.map((made) => made.input);
  fields.forEach((field, index) => { field.next = fields[index + 1] ?? save; });
  const form = element(
    "form",
    {
      novalidate: true,
      submit: (event) => { event.preventDefault(); saveAll(app, unnamed, roster); },
    },
    element("div", { class: "cards" }, cards.map((made) => made.root)),
    element("div", { class: "save" }, save),
  );
  return [
    title,
    element(
      "p",
      {},
      "A name of the class joins the faces to that student, any other one is a new student's. Press a face that is " +
        "somebody else, to leave it out. The faces that stay are confirmed.",
    ),
    form,
    ...loose,
  ];
}

// Of the faces that show nobody, those that are chosen; and how many are shown.
const chosen = new Set();
const LOOSE = 60;
let looseShown = LOOSE;

/** Faces that no run and no person gives to anybody: too poor, strangers, or taken off somebody. */
function looseFaces(app, people) {
  const faces = app.review.faces.filter((face) => face.state === "unknown" && face.student_id === null && app.sessions.has(face.session_id));
  if (!faces.length) return [];
  const crops = () => faces.map((face) => face.crop_id).filter((cropId) => chosen.has(cropId));
  const field = combobox({
    label: "Whose are the chosen ones?",
    students: people.map((student) => ({ ...student, note: student.student_number })),
    changed: (text) => {
      hint.textContent = text.trim() && !namedBy(text, people) ? "A new person." : "";
    },
    chosen: () => give(),
    key: "loose-name",
  });
  const hint = element("p", { class: "hint", role: "status" });
  const decide = (title, steps) =>
    app.decide(title, steps, { saved: () => { field.input.value = ""; chosen.clear(); } });
  const ready = () => {
    hint.textContent = crops().length ? "" : "Choose faces first.";
    return crops().length > 0;
  };
  const give = () => {
    if (!ready()) return undefined;
    const name = field.input.value.trim();
    if (!name) {
      hint.textContent = "Write a name first.";
      return field.input.focus();
    }
    const student = namedBy(name, people);
    const given = crops();
    return student
      ? decide(`${many(given.length, "face")} given to ${student.label}`, [() => api.confirmCrops(student.student_id, given)])
      : decide(`${facesAre(given)} ${name}, who is new`, [() => api.createStudent(given, name)]);
  };
  const facesAre = (given) => (given.length === 1 ? "1 face is" : `${given.length} faces are`);
  const visitor = () => {
    if (!ready()) return undefined;
    const given = crops();
    return decide(`${facesAre(given)} a visitor's`, [() => api.createStudent(given), (made) => api.hide(made.student_id)]);
  };
  const notFaces = () => {
    if (!ready()) return undefined;
    const given = crops();
    return decide(`${many(given.length, "face")}: no face`, [() => api.notFaces(given)]);
  };
  return [
    element("h3", {}, `Faces that show nobody (${faces.length})`),
    element("p", { class: "quiet" }, "Choose those of one person, and write whose they are: a name of the class, or a new one."),
    element(
      "div",
      { class: "faces" },
      faces.slice(0, looseShown).map(({ crop_id: cropId }) =>
        faceToggle(cropId, app.faceText(cropId), {
          kind: "choose",
          pressed: chosen.has(cropId),
          change: (is) => { if (is) chosen.add(cropId); else chosen.delete(cropId); },
          key: `loose-${cropId}`,
        }),
      ),
    ),
    faces.length > looseShown &&
      element(
        "button",
        { type: "button", "data-focus": "loose-more", click: () => { looseShown += 4 * LOOSE; app.render(); } },
        `Show more of the ${faces.length}`,
      ),
    element("div", { class: "field" }, field.root, element("button", { type: "button", click: give }, "Give them")),
    hint,
    element(
      "div",
      { class: "actions" },
      element("button", { type: "button", click: visitor }, "A visitor"),
      element("button", { type: "button", click: notFaces }, "Not a face"),
    ),
  ].filter(Boolean);
}

function card(app, student, roster, count) {
  const id = student.student_id;
  const draft = draftOf(id);
  const hint = element("p", { class: "hint", id: `hint-${id}` });
  const proposal = app.review.questions.find((question) => question.key === `who-${id}`)?.candidates[0];
  const proposed = proposal && isLike(proposal.similarity, app.review.threshold) && app.students.get(proposal.student_id);
  const visitor = element("input", {
    type: "checkbox",
    "data-focus": `visitor-${id}`,
    change: () => { draft.visitor = visitor.checked; told(); },
  });
  visitor.checked = draft.visitor;
  const field = combobox({
    label: "Name",
    students: roster.map((known) => ({ ...known, note: known.student_number })),
    value: draft.name,
    changed: (text) => { draft.name = text; told(); },
    chosen: () => field.input.next.focus(),
    key: `name-${id}`,
  });
  field.input.setAttribute("aria-describedby", `hint-${id}`);

  function together(known) {
    const photos = app.photosTogether(student, known);
    return photos ? ` But ${many(photos, "photo shows", "photos show")} both of them: can that be?` : "";
  }

  function told() {
    const known = namedBy(draft.name, roster);
    field.input.disabled = draft.visitor;
    hint.replaceChildren(
      ...(draft.visitor ? ["In no register."]
        : known ? ["Is ", bdi(known.label), ", who is in the class.", together(known)]
        : draft.name.trim() ? ["A new student."]
        : []),
    );
    count();
  }
  told();

  const shown = student.crop_ids.slice(0, SHOWN);
  const more = student.crop_ids.length - shown.length;
  const sessions = new Set(student.crop_ids.map((cropId) => app.faces.get(cropId).session_id)).size;
  const root = element(
    "fieldset",
    { class: "card" },
    element("legend", {}, bdi(student.label)),
    element("p", { class: "quiet" }, `${many(student.crop_ids.length, "face")} in ${many(sessions, "session")}`),
    element(
      "div",
      { class: "faces" },
      shown.map((cropId) =>
        faceToggle(cropId, `${app.faceText(cropId)}: is this person`, {
          kind: "keep",
          pressed: !draft.not.has(cropId),
          change: (is) => { if (is) draft.not.delete(cropId); else draft.not.add(cropId); },
          key: `names-${cropId}`,
        }),
      ),
    ),
    more > 0 && element("p", { class: "quiet" }, `and ${more} more, which are not confirmed with these`),
    proposed &&
      element(
        "button",
        {
          type: "button",
          "data-focus": `proposal-${id}`,
          click: () => {
            field.input.value = draft.name = proposed.label;
            draft.visitor = visitor.checked = false;
            told();
            field.input.focus();
          },
        },
        "Perhaps ",
        bdi(proposed.label),
        `: ${alike(proposal.similarity, app.review.threshold)}`,
      ),
    field.root,
    hint,
    element("label", {}, visitor, " A visitor"),
  );
  return { root, input: field.input };
}

/** Each filled-in person: what is left out is taken off, then the name, then what stays is confirmed. */
async function saveAll(app, unnamed, roster) {
  const filled = unnamed.filter((student) => isFilled(draftOf(student.student_id)));
  if (!filled.length) return;
  const steps = [];
  // Two with one new name are one person.
  const named = new Map();
  for (const { student_id: id, crop_ids: cropIds } of filled) {
    const draft = draftOf(id);
    const shown = cropIds.slice(0, SHOWN);
    for (const cropId of shown.filter((shownId) => draft.not.has(shownId))) steps.push(() => api.reject(cropId, id));
    const known = draft.visitor ? null : (namedBy(draft.name, roster)?.student_id ?? named.get(plain(draft.name)));
    if (draft.visitor) steps.push(() => api.hide(id));
    else if (known !== undefined) steps.push(() => api.merge(id, known));
    else {
      named.set(plain(draft.name), id);
      const { name } = draft;
      steps.push(() => api.rename(id, name));
    }
    const kept = shown.filter((shownId) => !draft.not.has(shownId));
    if (kept.length) steps.push(() => api.confirmCrops(known ?? id, kept));
  }
  const [first] = filled.map((student) => draftOf(student.student_id));
  const title =
    filled.length > 1 ? `${filled.length} people have a name`
    : first.visitor ? "an unknown person is a visitor"
    : `an unknown person is ${first.name.trim()}`;
  await app.decide(title, steps, { saved: () => filled.forEach((student) => drafts.delete(student.student_id)) });
}
