// A template of the pack opens at the size at which it was laid out, if the window shows all of it then.
// Front ends of 2026 (1.49, 1.58) fit each template into three quarters of the window, whatever view it was saved with,
// which makes its text smaller than need be. Other graphs open with their saved view anyway.

import { app } from "../../../scripts/app.js";

const OURS = "NeuroLux";

let opening = null;

const view = () => ({ scale: app.canvas.ds.scale, offset: [...app.canvas.ds.offset] });
const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

/** Whether a view shows every node. Their bounding boxes are known only after they have been drawn. */
function showsAll({ scale, offset }) {
  const { width, height } = app.canvas.canvas.getBoundingClientRect();
  return app.graph.nodes.every((node) => {
    const [left, bottom] = [node.pos[0] + offset[0], node.pos[1] + offset[1] + node.size[1]];
    const [right, top] = [left + node.size[0], bottom - node.size[1] - LiteGraph.NODE_TITLE_HEIGHT];
    return left >= 0 && top >= 0 && right * scale <= width && bottom * scale <= height;
  });
}

app.registerExtension({
  name: "NeuroLux.View",
  beforeConfigureGraph(graph) {
    const ours = graph.nodes?.some((node) => node.type?.startsWith(OURS));
    opening = ours && graph.extra?.ds ? { saved: graph.extra.ds, before: view() } : null;
  },
  afterConfigureGraph() {
    if (!opening) return;
    const { saved, before } = opening;
    opening = null;
    // A user can set that the view stays as it is. After undo and in other tabs, the editor itself puts it back later.
    if (same(view(), before) || saved.scale <= app.canvas.ds.scale || !showsAll(saved)) return;
    app.canvas.ds.scale = saved.scale;
    app.canvas.ds.offset = [...saved.offset];
    app.canvas.setDirty(true, true);
  },
});
