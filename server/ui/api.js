// The server's API. The key lives in this tab's session storage and goes to this server only.

const KEY = "skillguard.key";
const root = location.pathname.replace(/\/ui\/?$/, "");

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

/** Status and parsed body of an answer; status 0 where the server was not reached. */
export async function call(path, { method = "GET", body } = {}) {
  const headers = {};
  const sent = key.get();
  if (sent) headers.authorization = `Bearer ${sent}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  try {
    const response = await fetch(root + path, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
    });
    const text = await response.text();
    return { status: response.status, body: text ? JSON.parse(text) : null };
  } catch {
    return { status: 0, body: null };
  }
}

/** What an error answer says, for a person. */
export function reason(answer) {
  if (answer.status === 0) return "The server cannot be reached.";
  return answer.body?.error?.message ?? `The server answered with status ${answer.status}.`;
}
