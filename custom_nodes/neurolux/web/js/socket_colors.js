// Colours of the pack's own sockets and links, which would be grey: in the classic canvas, and in Nodes 2.0.

import { app } from "../../../scripts/app.js";

const COLORS = { NEUROLUX_PIPELINE: "#2ec4b6", NEUROLUX_FILE: "#8fb5c9" };

app.registerExtension({
  name: "NeuroLux.SocketColors",
  setup() {
    for (const [type, color] of Object.entries(COLORS)) {
      app.canvas.default_connection_color_byType[type] = color;
      app.canvas.constructor.link_type_colors[type] = color;
      document.documentElement.style.setProperty(`--color-datatype-${type}`, color);
    }
  },
});
