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

async function send(name, graph, overwrite) {
  const response = await api.fetchApi(`/neurolux/modes/${encodeURIComponent(name)}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ workflow: graph.workflow, api: graph.output, overwrite }),
  });
  const answer = await response.json().catch(() => ({}));
  return { status: response.status, ...answer };
}

async function publish() {
  const { dialog, workflow } = app.extensionManager;
  const open = modeName(workflow?.activeWorkflow?.filename ?? "");
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
  const graph = await app.graphToPrompt();
  let answer = await send(name, graph, false);
  if (answer.status === 409) {
    const replace = await dialog.confirm({ title: TITLE, message: `${answer.error.message}. Continue?`, type: "overwrite" });
    if (!replace) return;
    answer = await send(name, graph, true);
  }
  if (answer.status === 201) notify("success", `POST ${answer.endpoint} runs this graph now. Saved as ${answer.path}.`);
  else notify("error", answer.error?.message ?? `ComfyUI returned HTTP ${answer.status}; see its log.`);
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
