// A button on the File Parameter that uploads a file into ComfyUI's input folder and chooses it.

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

const NODE = "NeuroLuxFileParameter";
const ACCEPT = ".zip,.safetensors,.json,.txt,.png,.jpg,.jpeg,.webp";

async function upload(file) {
  const form = new FormData();
  form.append("image", file); // the route calls every upload an image
  const response = await api.fetchApi("/upload/image", { method: "POST", body: form });
  if (!response.ok) throw new Error(`ComfyUI rejected ${file.name}: HTTP ${response.status}`);
  const stored = await response.json();
  return stored.subfolder ? `${stored.subfolder}/${stored.name}` : stored.name;
}

function choose(node, combo) {
  const input = document.createElement("input");
  input.type = "file";
  input.accept = ACCEPT;
  input.onchange = async () => {
    try {
      const name = await upload(input.files[0]);
      if (!combo.options.values.includes(name)) combo.options.values.push(name);
      combo.value = name;
      node.setDirtyCanvas(true, true);
    } catch (error) {
      app.extensionManager.toast.add({ severity: "error", summary: "File Parameter", detail: error.message });
    }
  };
  input.click();
}

app.registerExtension({
  name: "NeuroLux.FileParameter",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const combo = node.widgets?.find((widget) => widget.name === "file");
    if (!combo) return;
    // It is not an input of the node: the option keeps it out of prompts, the property out of saved graphs.
    const options = { serialize: false };
    const button = node.addWidget("button", "choose file to upload", null, () => choose(node, combo), options);
    button.serialize = false;
  },
});
