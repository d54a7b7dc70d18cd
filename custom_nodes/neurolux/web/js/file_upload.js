// A button on nodes that take the name of a file: it uploads one into ComfyUI's input folder and chooses it.

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

const NODES = {
  NeuroLuxFileParameter: { widget: "file", accept: ".zip,.safetensors,.json,.txt,.png,.jpg,.jpeg,.webp" },
  NeuroLuxTrainingImages: { widget: "source", accept: ".zip" },
};

async function upload(file) {
  const form = new FormData();
  form.append("image", file); // the route calls every upload an image
  const response = await api.fetchApi("/upload/image", { method: "POST", body: form });
  if (!response.ok) throw new Error(`ComfyUI rejected ${file.name}: HTTP ${response.status}`);
  const stored = await response.json();
  return stored.subfolder ? `${stored.subfolder}/${stored.name}` : stored.name;
}

function choose(node, widget, accept) {
  const input = document.createElement("input");
  input.type = "file";
  input.accept = accept;
  input.onchange = async () => {
    try {
      const name = await upload(input.files[0]);
      const values = widget.options?.values;
      if (Array.isArray(values) && !values.includes(name)) values.push(name);
      widget.value = name;
      node.setDirtyCanvas(true, true);
    } catch (error) {
      app.extensionManager.toast.add({ severity: "error", summary: node.title, detail: error.message });
    }
  };
  input.click();
}

app.registerExtension({
  name: "NeuroLux.FileUpload",
  nodeCreated(node) {
    const { widget: name, accept } = NODES[node.comfyClass] ?? {};
    const widget = node.widgets?.find((each) => each.name === name);
    if (!widget) return;
    // It is not an input of the node: the option keeps it out of prompts, the property out of saved graphs.
    const options = { serialize: false };
    const button = node.addWidget("button", "choose file to upload", null, () => choose(node, widget, accept), options);
    button.serialize = false;
  },
});
