// The pack's own websocket messages are for programs; the editor shows the same as bars and texts on the nodes.
// The front end warns in the console of a message that nobody listens to.

import { api } from "../../../scripts/api.js";

for (const message of ["neurolux.download", "neurolux.loading"]) api.addEventListener(message, () => {});
