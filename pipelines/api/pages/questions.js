// One question at a time: the one whose answer settles most of the register first.

import * as api from "./api.js";
import { alike, bdi, combobox, element, faceImage, isLike, many, namedBy } from "./dom.js";

// As many faces as somebody looks at; an answer says nothing of the others, which are asked about again.
const SHOWN = 12;

const skipped = new Set();
// When the candidates of the one that is looked at have changed, and with them the digits; how long that is not seen yet, in ms.
let changedAt = -Infinity;
const UNSEEN = 600;

export function renderQuestions(app) {
  const questions = app.review.questions.filter((question) => !app.answered.has(question.key));
  const left = questions.filter((question) => question.cells.length).length;
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
  const question = { ...(waiting.find(({ key }) => key === app.looked.key) ?? waiting[0]) };
  const candidates = JSON.stringify(question.candidates);
  if (question.key === app.looked.key && candidates !== app.looked.candidates) changedAt = performance.now();
  app.looked = { key: question.key, candidates };
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
    return answers.named(field.input.value);
  };
  const plainAnswer = (text, run, attributes = {}) =>
    element("button", { type: "button", "data-answer": ++number, click: run, ...attributes }, element("kbd", {}, String(number)), ` ${text}`);
  return element(
    "article",
    { "aria-labelledby": "question" },
    element("h3", { id: "question", tabindex: -1, "data-next": true, "data-focus": `question-${question.key}` }, app.readable(question.text)),
    element(
      "div",
      { class: "faces" },
      shown.map((id) => faceImage(id, app.faceText(id), shown.length > 2 ? "medium" : "large")),
    ),
    more > 0 && element("p", { class: "quiet" }, `and ${more} more, which the answer says nothing of`),
    question.set_aside.map((sentence) => element("p", {}, app.readable(sentence))),
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
  const decide = (title, steps) => {
    if (performance.now() - changedAt < UNSEEN) return app.say("The question has just changed: look at it again.");
    return app.decide(title, steps, { question: question.key });
  };
  const notAFace = () => decide(crops.length === 1 ? "no face" : "no faces", [() => api.notFaces(crops)]);
  const candidates = (answer) => question.candidates.map((candidate) => () => answer(app.students.get(candidate.student_id)));
  const own = question.student_id;
  const named = (text) => namedBy(text, [...app.students.values()].filter((student) => student.student_id !== own));
  /** The student of that name; one whom the answer just before has made is known once the class is read. */
  const known = async (text) => {
    if (!named(text)) await app.refreshed()?.catch(() => {});
    return named(text);
  };
  if (question.kind === "who") {
    const is = (student) =>
      decide(`an unknown person is ${student.label}`, [
        () => api.merge(own, student.student_id),
        () => api.confirmCrops(student.student_id, crops),
      ]);
    return {
      candidates: candidates(is),
      named: (text) =>
        decide(`an unknown person is ${named(text)?.label ?? text.trim()}`, [
          async () => {
            const student = await known(text);
            return student ? api.merge(own, student.student_id) : api.rename(own, text);
          },
          (one) => api.confirmCrops(one.id, crops),
        ]),
      visitor: () => decide("an unknown person is a visitor", [() => api.hide(own), () => api.confirmCrops(own, crops)]),
      notAFace,
    };
  }
  const faces = crops.length === 1 ? "the face is" : `${many(crops.length, "face")} are`;
  const is = (student) => decide(`${faces} ${student.label}`, [() => api.confirmCrops(student.student_id, crops)]);
  return {
    candidates: candidates(is),
    named: (text) =>
      decide(`${faces} ${named(text)?.label ?? text.trim()}`, [
        async () => {
          const student = await known(text);
          return student ? api.confirmCrops(student.student_id, crops) : api.split(own, crops, text);
        },
      ]),
    visitor: () => decide(`${faces} a visitor`, [() => api.split(own, crops), (made) => api.hide(made.student_id)]),
    notAFace,
  };
}
