// "Publish as mode": saves the open graph in both formats, so that the service answers requests to it at once.
// The front end itself converts the graph; the pack's route checks it and writes the files.

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

const COMMAND = "NeuroLux.PublishAsMode";
const TITLE = "Publish as mode";
const TOLD_MS = 15000;

/** A name that can be a mode's: small letters, digits, - and _. */
function modeName(text) {
  return text
    .normalize("NFKD")
    .toLowerCase()
    .replace(/\.json$/, "")
    .replace(/[^a-z0-9_-]+/g, "-")
    .replace(/^[-_]+|[-_]+$/g, "")
    .slice(0, 64);
}

function tell(severity, detail) {
  app.extensionManager.toast.add({ severity, summary: TITLE, detail, life: TOLD_MS });
}

async function send(name, graph, overwrite) {
  const response = await api.fetchApi(`/neurolux/modes/${encodeURIComponent(name)}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ workflow: graph.workflow, api: graph.output, overwrite }),
  });
  const told = await response.json().catch(() => ({}));
  return { status: response.status, ...told };
}

async function publish() {
  const { dialog, workflow } = app.extensionManager;
  const open = modeName(workflow?.activeWorkflow?.filename ?? "");
  const given = await dialog.prompt({
    title: TITLE,
    message: "Name of the mode, as it stands in its endpoint:",
    defaultValue: open.startsWith("unsaved-workflow") ? "" : open,
  });
  if (given === null || given === undefined) return; // closed
  const name = modeName(given);
  if (!name) {
    tell("error", `"${given}" holds no letter or digit that a name could be made of.`);
    return;
  }
  const graph = await app.graphToPrompt();
  let answer = await send(name, graph, false);
  if (answer.status === 409) {
    const replace = await dialog.confirm({ title: TITLE, message: `${answer.error.message}. Go on?`, type: "overwrite" });
    if (!replace) return;
    answer = await send(name, graph, true);
  }
  if (answer.status === 201) tell("success", `POST ${answer.endpoint} runs this graph now. Saved as ${answer.path}.`);
  else tell("error", answer.error?.message ?? `ComfyUI answered ${answer.status}; its log says why.`);
}

app.registerExtension({
  name: "NeuroLux.Publish",
  commands: [
    {
      id: COMMAND,
      label: TITLE,
      icon: "pi pi-cloud-upload",
      function: () => publish().catch((error) => tell("error", String(error?.message ?? error))),
    },
  ],
  menuCommands: [{ path: ["File"], commands: [COMMAND] }],
});
