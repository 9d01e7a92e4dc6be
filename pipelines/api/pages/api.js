// The HTTP API: calls with the token, errors in words, pictures of faces.

const API = new URL("../api/attendance/", location.href);
const TOKEN = "attendansee-token";

/** Something that the server said no to, in words; status 0 where it did not answer. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The answer to a call as JSON. */
export async function call(method, path, body) {
  return (await request(method, path, body)).json();
}

async function request(method, path, body) {
  const headers = {};
  const token = sessionStorage.getItem(TOKEN);
  // A header takes bytes, and those of a token are its UTF-8.
  if (token) headers.Authorization = `Bearer ${String.fromCharCode(...new TextEncoder().encode(token))}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(new URL(path, API), { method, headers, body: body && JSON.stringify(body) });
  } catch {
    throw new ApiError(0, "The server does not answer: is it still running?");
  }
  if (response.status === 401) {
    await askForToken(token);
    return request(method, path, body);
  }
  if (!response.ok) throw new ApiError(response.status, await inWords(response));
  return response;
}

async function inWords(response) {
  try {
    const { detail } = await response.json();
    return typeof detail === "string" ? detail : detail.map((problem) => problem.msg).join(" ");
  } catch {
    return `The server answered ${response.status}, and no more.`;
  }
}

let asking = null;

/** Ask once, however many calls were refused; `refused` is the token that they had. */
function askForToken(refused) {
  // Somebody may have given a better one since the call was sent.
  if (refused !== sessionStorage.getItem(TOKEN)) return Promise.resolve();
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("token-dialog");
    const input = document.getElementById("token");
    if (refused) document.getElementById("token-help").textContent = "The server does not take this token: give another.";
    // Closed with Escape there is still none, and nothing to show: asked again.
    const closed = () => {
      if (!input.value.trim()) return dialog.showModal();
      sessionStorage.setItem(TOKEN, input.value.trim());
      input.value = "";
      dialog.removeEventListener("close", closed);
      asking = null;
      resolve();
    };
    dialog.addEventListener("close", closed);
    dialog.showModal();
  });
  return asking;
}

const pictures = new Map();

/** The URL of a face's picture in this page's memory; the server lets nobody keep it. */
export function picture(cropId) {
  if (!pictures.has(cropId)) {
    const loaded = request("GET", `face-crops/${cropId}/image/`)
      .then((response) => response.blob())
      .then((blob) => URL.createObjectURL(blob));
    loaded.catch(() => pictures.delete(cropId));
    pictures.set(cropId, loaded);
  }
  return pictures.get(cropId);
}

// Why somebody decides as they do, for the decisions that are made next; empty for no reason.
let reason = "";

export function because(text) {
  reason = text.trim();
}

const decision = (method, path, body = {}) => call(method, path, reason ? { ...body, reason } : body);

// Every one is a decision that the server keeps, and answers with its decision_id.

export const confirmCrops = (studentId, cropIds) =>
  decision("POST", `students/${studentId}/confirm-crops/`, { crop_ids: cropIds });
export const split = (studentId, cropIds, name) =>
  decision("POST", `students/${studentId}/split/`, name ? { crop_ids: cropIds, name } : { crop_ids: cropIds });
export const createStudent = (cropIds, name) =>
  decision("POST", "students/", name ? { crop_ids: cropIds, name } : { crop_ids: cropIds });
export const rename = (studentId, name) => decision("PATCH", `students/${studentId}/`, { name });
export const merge = (studentId, intoId) => decision("POST", `students/${studentId}/merge/`, { into_student_id: intoId });
export const hide = (studentId) => decision("POST", `students/${studentId}/hide/`);
export const reject = (cropId, studentId) => decision("POST", `face-crops/${cropId}/reject/`, { student_id: studentId });
export const notFaces = (cropIds) => decision("POST", "face-crops/not-a-face/", { crop_ids: cropIds });
export const mark = (sessionId, studentId, status, note) =>
  call("PUT", `sessions/${sessionId}/attendance/${studentId}/`, { status, note: note || reason || null });
export const undo = (decisionId) => decision("POST", `decisions/${decisionId}/undo/`);
