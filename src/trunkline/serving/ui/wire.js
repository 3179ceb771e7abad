// Talks to the native wire: what the model is, and answers. Every refusal becomes a sentence to read, and the key goes
// with each request and is kept nowhere else. Knows nothing of the page.

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

// {name, bundle, depth, engine, dtype, device, tasks: [{name, kind, labels, pair, fork, layers, loaded, exits, …}]}
export const describe = (key) => call("v1/model", { key });

// {results: [{task: answer or {error}}], bundle, layers, speeds by task, timings in ms}
export const predict = (asked, key, signal) =>
  call("v1/predict", { method: "POST", body: JSON.stringify(asked), key, signal });

async function call(path, { key, ...options }) {
  const headers = options.body ? { "Content-Type": "application/json" } : {};
  // A header takes bytes, so a key beyond ASCII goes as its UTF-8.
  if (key) headers.Authorization = `Bearer ${String.fromCharCode(...new TextEncoder().encode(key))}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server cannot be reached. Is it running, and is this device connected? Then try again.");
  }
  const body = await response.json().catch(() => ({}));
  if (response.ok) return body;
  throw new Refused(sentence(response, body.error?.message ?? response.statusText, key), response.status);
}

function sentence(response, why, key) {
  const seconds = Number(response.headers.get("Retry-After"));
  const when = seconds === 1 ? "one second" : `${seconds} seconds`;
  const again = `Try again in ${seconds > 0 ? when : "a moment"}.`;
  switch (response.status) {
    case 401:
      return key ? "The server does not take this API key." : "This server wants an API key.";
    case 404:
      return `The model has changed meanwhile: ${why}`;
    case 413:
    case 422:
      return `The server cannot take this: ${why}`;
    case 429:
      return `The server has all the work that it can hold. ${again}`;
    case 503:
      return `The server cannot answer now: ${why}. ${again}`;
    case 504:
      return `The answer took longer than the server allows. ${again}`;
    default:
      return `The server answered with an error (${response.status}): ${why}`;
  }
}
