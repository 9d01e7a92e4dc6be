// One question at a time: the one whose answer settles most of the register first.

import * as api from "./api.js";
import { alike, bdi, combobox, element, faceImage, isLike, many, namedBy } from "./dom.js";

// As many faces as somebody looks at; an answer says nothing of the others, which are asked about again.
const SHOWN = 12;

const skipped = new Set();

export function renderQuestions(app) {
  const { questions, left } = app.review;
  const waiting = questions.filter((question) => !skipped.has(question.key));
  const title = element("h2", { tabindex: -1 }, "Questions");
  if (!waiting.length) {
    return [
      title,
      element("p", { "data-next": true, tabindex: -1 }, questions.length ? `You have skipped ${many(questions.length, "question")}.` : "Nothing is in doubt."),
      questions.length > 0 &&
        element("button", { type: "button", click: () => { skipped.clear(); app.render(); } }, "Ask again"),
    ].filter(Boolean);
  }
  const question = { ...waiting[0] };
  // For an unknown person the nearest students are proposed, however far away they are.
  if (question.kind === "who") question.candidates = question.candidates.filter((near) => isLike(near.similarity, app.review.threshold));
  const settles = question.cells.length;
  return [
    title,
    element(
      "p",
      { class: "quiet" },
      `${many(left, "question")} left to settle the register; `,
      settles ? `the answer to this one settles ${many(settles, "cell")}.` : "this one settles none.",
      skipped.size > 0 && ` ${skipped.size} skipped.`,
    ),
    article(app, question),
  ];
}

function article(app, question) {
  const answers = answersTo(app, question);
  let number = 0;
  const shown = question.crop_ids.slice(0, SHOWN);
  const more = question.crop_ids.length - shown.length;
  const candidates = question.candidates.map((candidate, index) => {
    const student = app.students.get(candidate.student_id);
    return element(
      "section",
      { class: "candidate", "aria-label": student.label },
      element("h4", {}, bdi(student.label)),
      element("p", { class: "quiet" }, alike(candidate.similarity, app.review.threshold)),
      candidate.crop_ids.length
        ? element("div", { class: "faces" }, candidate.crop_ids.map((id) => faceImage(id, `${student.label}: ${app.faceText(id)}`)))
        : element("p", {}, "No face to compare with."),
      element(
        "button",
        { type: "button", class: "main", "data-answer": ++number, click: answers.candidates[index] },
        element("kbd", {}, String(number)),
        " It is ",
        bdi(student.label),
      ),
    );
  });
  const choices = [...app.students.values()].filter((student) => student.student_id !== question.student_id);
  const field = combobox({
    label: [element("kbd", {}, String(++number)), " Somebody else, or a new person"],
    students: choices.map((student) => ({ ...student, note: student.student_number })),
    chosen: () => save(),
    key: `answer-${question.key}`,
    answer: number,
  });
  const save = () => {
    if (!field.input.value.trim()) return field.input.focus();
    return answers.named(field.input.value, namedBy(field.input.value, choices));
  };
  const plainAnswer = (text, run, attributes = {}) =>
    element("button", { type: "button", "data-answer": ++number, click: run, ...attributes }, element("kbd", {}, String(number)), ` ${text}`);
  return element(
    "article",
    { "aria-labelledby": "question" },
    element("h3", { id: "question", tabindex: -1, "data-next": true }, app.readable(question.text)),
    element(
      "div",
      { class: "faces" },
      shown.map((id) => faceImage(id, app.faceText(id), shown.length > 2 ? "medium" : "large")),
    ),
    more > 0 && element("p", { class: "quiet" }, `and ${more} more, which the answer says nothing of`),
    candidates.length > 0 && element("div", { class: "candidates" }, candidates),
    element("div", { class: "field" }, field.root, element("button", { type: "button", click: save }, "Save this name")),
    element(
      "div",
      { class: "actions" },
      plainAnswer("A visitor", answers.visitor),
      plainAnswer(question.crop_ids.length === 1 ? "Not a face" : "These are not faces", answers.notAFace),
      element(
        "button",
        { type: "button", "data-skip": true, click: () => { skipped.add(question.key); app.render(); } },
        element("kbd", {}, "s"),
        " Skip",
      ),
    ),
    question.kind === "which" &&
      element(
        "details",
        {},
        element("summary", {}, "Why is this asked?"),
        element("ul", {}, shown.map((id) => element("li", {}, app.readable(app.faces.get(id).why)))),
      ),
  );
}

/** What each answer has the server keep. */
function answersTo(app, question) {
  const crops = question.crop_ids.slice(0, SHOWN);
  const notAFace = () => app.decide(crops.length === 1 ? "no face" : "no faces", [() => api.notFaces(crops)]);
  const candidates = (answer) => question.candidates.map((candidate) => () => answer(app.students.get(candidate.student_id)));
  const own = question.student_id;
  if (question.kind === "who") {
    const is = (student) =>
      app.decide(`an unknown person is ${student.label}`, [
        () => api.merge(own, student.student_id),
        () => api.confirmCrops(student.student_id, crops),
      ]);
    return {
      candidates: candidates(is),
      named: (text, student) =>
        student
          ? is(student)
          : app.decide(`an unknown person is ${text.trim()}`, [() => api.rename(own, text), () => api.confirmCrops(own, crops)]),
      visitor: () => app.decide("an unknown person is a visitor", [() => api.hide(own), () => api.confirmCrops(own, crops)]),
      notAFace,
    };
  }
  const faces = crops.length === 1 ? "the face is" : `${many(crops.length, "face")} are`;
  const is = (student) => app.decide(`${faces} ${student.label}`, [() => api.confirmCrops(student.student_id, crops)]);
  const splitOff = (text) => [() => api.split(own, crops, text)];
  return {
    candidates: candidates(is),
    named: (text, student) =>
      student ? is(student) : app.decide(`${faces} ${text.trim()}`, splitOff(text)),
    visitor: () => app.decide(`${faces} a visitor`, [...splitOff(), (made) => api.hide(made.student_id)]),
    notAFace,
  };
}
