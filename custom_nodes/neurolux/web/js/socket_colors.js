// Colours of the pack's own sockets and links, which would be grey: in the classic canvas, and in Nodes 2.0.
// A colour palette, whenever one is chosen, takes away the colours of all types that it does not name. Hence a property
// that it cannot change, and a style sheet below the styles that it sets.

import { app } from "../../../scripts/app.js";

const COLORS = { NEUROLUX_PIPELINE: "#2ec4b6", NEUROLUX_FILE: "#8fb5c9" };

function keep(colors, type, color) {
  Object.defineProperty(colors, type, { get: () => color, set: () => {}, enumerable: true, configurable: true });
}

app.registerExtension({
  name: "NeuroLux.SocketColors",
  setup() {
    const style = document.createElement("style");
    const rules = Object.entries(COLORS).map(([type, color]) => `--color-datatype-${type}: ${color};`);
    style.textContent = `:root { ${rules.join(" ")} }`;
    document.head.append(style);
    for (const [type, color] of Object.entries(COLORS)) {
      keep(app.canvas.default_connection_color_byType, type, color);
      keep(app.canvas.constructor.link_type_colors, type, color);
    }
  },
});
