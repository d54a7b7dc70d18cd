// "Publish as mode": saves the open graph in both formats, so that the service serves it as an endpoint at once.
// The front end converts the graph; the pack's route checks it and writes the files.

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

const COMMAND = "NeuroLux.PublishAsMode";
const TITLE = "Publish as mode";
const TOAST_MS = 15000;

/** A valid mode name made from text: lowercase letters, digits, - and _. */
function modeName(text) {
  return text
    .normalize("NFKD")
    .toLowerCase()
    .replace(/\.json$/, "")
    .replace(/[^a-z0-9_-]+/g, "-")
    .replace(/^[-_]+|[-_]+$/g, "")
    .slice(0, 64);
}

function notify(severity, detail) {
  app.extensionManager.toast.add({ severity, summary: TITLE, detail, life: TOAST_MS });
}

/** The names of each node's widgets as they are saved, by the node's id in the graph that runs. */
function widgetNames(graph, prefix = "", found = {}) {
  for (const node of graph.nodes ?? []) {
    const id = prefix + node.id;
    if (node.widgets?.length) found[id] = node.widgets.map((widget) => widget.name);
    if (node.subgraph) widgetNames(node.subgraph, `${id}:`, found);
  }
  return found;
}

/** What the server needs. File > Save's own form keeps the labels of widgets, which `graphToPrompt` may lose. */
export async function content() {
  const { output } = await app.graphToPrompt();
  const workflow = JSON.parse(JSON.stringify(app.graph.serialize()));
  return { workflow, api: output, widgets: widgetNames(app.graph) };
}

export async function send(name, graph, options) {
  const response = await api.fetchApi(`/neurolux/modes/${encodeURIComponent(name)}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...graph, ...options }),
  });
  const answer = await response.json().catch(() => ({}));
  return { status: response.status, ...answer };
}

function failed(answer) {
  notify("error", answer.error?.message ?? `ComfyUI returned HTTP ${answer.status}; see its log.`);
}

async function publish() {
  const { dialog, workflow } = app.extensionManager;
  const open = modeName((workflow?.activeWorkflow?.filename ?? "").replace(/\.app$/, ""));
  const given = await dialog.prompt({
    title: TITLE,
    message: "Name of the mode, which is part of its URL:",
    defaultValue: open.startsWith("unsaved-workflow") ? "" : open,
  });
  if (given === null || given === undefined) return; // closed
  const name = modeName(given);
  if (!name) {
    notify("error", `"${given}" has no letter or digit to make a name from.`);
    return;
  }
  const graph = await content();
  const plan = await send(name, graph, { dry_run: true });
  if (plan.status !== 200) return failed(plan);
  const agreed = await dialog.confirm({
    title: `${TITLE}: ${name}`,
    message: plan.replaces ? `${plan.replaces}. Continue?` : `POST ${plan.endpoint} will take these parameters:`,
    type: plan.replaces ? "overwrite" : "default",
    itemList: [
      ...(plan.parameters.length ? plan.parameters : ["no parameters: each request runs the graph as it is"]),
      ...plan.missing_nodes,
      ...plan.warnings.map((text) => `left out: ${text}`),
    ],
  });
  if (!agreed) return;
  const answer = await send(name, graph, { overwrite: Boolean(plan.replaces) });
  if (answer.status === 201) notify("success", `POST ${answer.endpoint} runs this graph now. Saved as ${answer.path}.`);
  else failed(answer);
}

app.registerExtension({
  name: "NeuroLux.Publish",
  commands: [
    {
      id: COMMAND,
      label: TITLE,
      icon: "pi pi-cloud-upload",
      function: () => publish().catch((error) => notify("error", String(error?.message ?? error))),
    },
  ],
  menuCommands: [{ path: ["File"], commands: [COMMAND] }],
});
