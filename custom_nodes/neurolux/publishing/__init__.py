"""Makes a mode of a graph from the editor: which of its values a request can set, under which names, and the files."""
