"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const list = document.getElementById("questions");
const rows = data.questions.map((question, number) => ({ ...question, number, node: list.children[number] }));
const find = selector => document.querySelector(selector);
let shown = data.shown, state = "";

/** The cases of the page as it was rendered: tied where AP@3 depends on it, right, or wrong; none without an answer. */
function stateOf([, , rank, tied]) {
  if (rank === null) return "";
  return tied > 1 && rank <= 3 ? "tied" : rank === 1 ? "right" : "wrong";
}

/** Whether another option than the right one is first, whatever the order of tied ones. */
const isWrong = row => row.answered[2] > 1;
const inState = row => !state || row.state === state || (state === "wrong" && isWrong(row));

function showReader(name) {
  shown = name;
  for (const node of document.querySelectorAll("[data-reader]")) node.hidden = node.dataset.reader !== name;
  for (const node of document.querySelectorAll("tr[data-name]")) node.classList.toggle("shown", node.dataset.name === name);
  const { ways, rows: answers } = data.readers[name];
  for (const row of rows) {
    row.answered = answers[row.number];
    row.state = stateOf(row.answered);
    fill(row, ways[row.answered[4]]);
  }
  arrange();
}

function fill({ node, answered, state }, way) {
  const [ranking, probabilities, rank, , , cut, evidence] = answered;
  node.classList.remove("right", "wrong", "tied");
  if (state) node.classList.add(state);
  node.classList.toggle("marks", way.marks);
  node.querySelector(".mark").textContent = { "": "·", right: "✓", tied: "=" }[state] ?? rank;
  node.querySelector(".mark + .said").textContent = state === "wrong" ? `wrong, the right option is ranked ${rank}` : state;
  node.querySelector(".way span").textContent = way.said;
  node.querySelector(".way .cut").hidden = !cut;
  node.querySelector(".evidence").hidden = !evidence;
  if (evidence) {
    const [before, after] = node.querySelectorAll(".evidence span");
    const [title, clause] = [".evidence b", ".evidence mark"].map(name => node.querySelector(name));
    for (const [place, text] of [[before, evidence[0]], [clause, evidence[1]], [after, evidence[2]], [title, evidence[3]]]) place.textContent = text;
  }
  const options = node.querySelector(".options-by-rank");
  for (const [place, letter] of [...ranking].entries()) {
    const option = options.querySelector(`[data-letter="${letter}"]`);
    option.querySelector("i").style.width = `${(100 * probabilities[place]).toFixed(1)}%`;
    option.querySelector(".p").textContent = `${(100 * probabilities[place]).toFixed(0)} %`;
    options.append(option);
  }
}

const sure = row => row.answered[1][0];
const orders = {
  exam: (one, other) => one.number - other.number,
  wrong: (one, other) => isWrong(other) - isWrong(one) || sure(other) - sure(one) || one.number - other.number,
  unsure: (one, other) => sure(one) - sure(other) || one.number - other.number,
};

/** What of a question is searched: its texts as they are shown for every reader, its prompt as it was given, and its id. */
function textOf(row) {
  row.text ??= [row.id, row.prompt, ...[...row.node.querySelectorAll("[dir]:not(.evidence [dir])")].map(node => node.textContent)].join("\n").toLowerCase();
  return row.text;
}

function arrange() {
  rows.sort(orders[find("#order").value]);
  list.append(...rows.map(row => row.node));
  filter();
}

function filter() {
  const words = find("#search").value.trim().toLowerCase(), slice = find("#slice")?.value ?? "";
  for (const row of rows) {
    row.node.hidden = Boolean(!inState(row) || (slice && !row.slices.includes(slice)) || (words && !textOf(row).includes(words)));
  }
  const left = rows.filter(row => !row.node.hidden).length;
  find("#count").textContent = left ? `${left.toLocaleString("en")} of ${rows.length.toLocaleString("en")} questions` : "No question matches.";
  find("#download").disabled = !left;
}

/** A cell of a CSV file; one that a spreadsheet would compute begins with an apostrophe, so that it is text. */
function cell(value) {
  let text = value === null || value === undefined ? "" : String(value);
  if (/^[=+\-@\t\r]/.test(text)) text = `'${text}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function download() {
  const lines = [["id", "prompt", "answer", "prediction", "rank", "tied", "probability", "topic", "reader", "contamination"]];
  for (const { node, id, prompt, answer, slices, contamination, answered } of rows) {
    if (node.hidden) continue;
    const [ranking, probabilities, rank, tied] = answered;
    const topic = slices.filter(name => !name.startsWith("contamination: ")).map(name => name.slice(name.indexOf(": ") + 2)).join("; ");
    lines.push([id, prompt, answer, [...ranking.slice(0, 3)].join(" "), rank, tied, probabilities[0], topic, shown, contamination]);
  }
  const text = "\ufeff" + lines.map(line => line.map(cell).join(",") + "\r\n").join("");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
  link.download = `${shown}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

for (const node of document.querySelectorAll(".scripted")) node.hidden = false;
const buttons = [...document.querySelectorAll("button[data-state]")];
for (const button of buttons) {
  button.onclick = () => {
    state = button.dataset.state;
    for (const each of buttons) each.setAttribute("aria-pressed", each === button);
    filter();
  };
}
find("#search").oninput = filter;
find("#order").onchange = arrange;
find("#download").onclick = download;
if (find("#slice")) find("#slice").onchange = filter;
if (find("#reader")) find("#reader").onchange = event => showReader(event.target.value);
if (find("#reader")) find("#reader").value = shown;
showReader(shown);
