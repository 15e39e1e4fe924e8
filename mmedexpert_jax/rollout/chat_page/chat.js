"use strict";
// Text of people and models enters the page as text nodes alone, never as HTML.
const find = (id) => document.getElementById(id);
let messages = [];
let comparison = null;

function headers() {
  const key = find("key");
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key.value}` } : {}) };
}

function entry(who, text, images = [], into = find("log")) {
  const article = into.appendChild(document.createElement("article"));
  article.appendChild(document.createElement("h2")).textContent = who;
  for (const address of images) {
    const image = article.appendChild(document.createElement("img"));
    image.src = address;
    image.alt = "sent image";
  }
  const body = article.appendChild(document.createElement("div"));
  body.textContent = text;
  return body;
}

function address(file) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(new Error(`${file.name} cannot be read`));
    reader.readAsDataURL(file);
  });
}

async function post(path, body) {
  const response = await fetch(path, { method: "POST", headers: headers(), body: JSON.stringify(body) });
  if (response.ok) return response;
  const said = await response.json().catch(() => ({}));
  throw new Error(said.error ? said.error.message : `status ${response.status}`);
}

async function chat(model) {
  const response = await post("/v1/chat/completions", { model, messages, stream: true });
  const body = entry(model, "");
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const lines = (rest + part.value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Error(event.error.message);
      for (const choice of event.choices) body.textContent += choice.delta.content || "";
    }
  }
  messages.push({ role: "assistant", content: body.textContent });
}

async function compare() {
  const said = await (await post("/compare", { messages })).json();
  const pair = find("log").appendChild(document.createElement("div"));
  pair.className = "pair";
  entry("first", said.answers[0], [], pair);
  entry("second", said.answers[1], [], pair);
  comparison = { id: said.id, heads: pair.querySelectorAll("h2") };
  find("vote").hidden = false;
}

function showVotes(rows) {
  const table = document.createElement("table");
  const line = (cells, kind) => {
    const row = table.appendChild(document.createElement("tr"));
    for (const text of cells) row.appendChild(document.createElement(kind)).textContent = text;
  };
  line(["models", "wins", "ties", "share of the first [95 %]"], "th");
  for (const row of rows) {
    const [share, low, high] = [row.share, row.low, row.high].map((value) => (100 * value).toFixed(1));
    line([row.models.join(" : "), row.wins.join(" : "), row.ties, `${share} [${low}, ${high}]`], "td");
  }
  find("votes").replaceChildren(...(rows.length ? [table] : []));
}

find("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const [text, model] = [find("question").value, find("model").value];
  const kept = messages.length;
  find("send").disabled = true;
  find("status").textContent = "asking …";
  try {
    if (!model) messages = []; // a comparison has one question
    const images = await Promise.all(Array.from(find("images").files, address));
    const parts = images.map((url) => ({ type: "image_url", image_url: { url } }));
    messages.push({ role: "user", content: [...parts, { type: "text", text }] });
    entry("you", text, images);
    await (model ? chat(model) : compare());
    find("question").value = find("images").value = "";
    find("status").textContent = "";
  } catch (error) {
    messages.length = Math.min(kept, messages.length); // a turn that failed is not sent again with the next
    find("status").textContent = error.message;
  }
  find("send").disabled = false;
});

find("vote").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    const said = await (await post("/votes", { id: comparison.id, better: event.submitter.value })).json();
    comparison.heads.forEach((head, index) => { head.textContent = said.models[index]; });
    find("vote").hidden = true;
    messages = [];
    showVotes(said.table);
  } catch (error) {
    find("status").textContent = error.message;
  }
});

find("clear").addEventListener("click", () => {
  messages = [];
  find("log").replaceChildren();
  find("vote").hidden = true;
});
