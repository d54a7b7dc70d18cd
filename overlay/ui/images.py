"""Converts encoded images to what GTK shows, copies and drags to other programs."""

from __future__ import annotations

from pathlib import Path

from gi.repository import Gdk, GdkPixbuf, Gio, GLib

from overlay.viewmodels.file_names import save_new


def texture(data: bytes) -> Gdk.Texture | None:
    """The image in ``data``; None if it cannot be decoded, such as a preview that was cut off."""
    try:
        return Gdk.Texture.new_from_bytes(GLib.Bytes.new(data))
    except GLib.Error:
        return None


def thumbnail(data: bytes, side: int) -> Gdk.Texture | None:
    """The image in ``data``, at most ``side`` pixels wide and high: a long history of full images would not fit."""
    stream = Gio.MemoryInputStream.new_from_bytes(GLib.Bytes.new(data))
    try:
        small = GdkPixbuf.Pixbuf.new_from_stream_at_scale(stream, side, side, True, None)
    except GLib.Error:
        return texture(data)  # a format that GdkPixbuf does not read
    return Gdk.Texture.new_for_pixbuf(small) if small is not None else None


def clipboard_content(data: bytes, mime: str) -> Gdk.ContentProvider:
    """``data`` for other programs: as the original file with its metadata, and as a texture in any format they take."""
    providers = [Gdk.ContentProvider.new_for_bytes(mime, GLib.Bytes.new(data))]
    shown = texture(data)
    if shown is not None:
        providers.append(Gdk.ContentProvider.new_for_value(shown))
    return Gdk.ContentProvider.new_union(providers)


def file_content(path: Path) -> Gdk.ContentProvider:
    """A file for programs that take files, such as a file manager or a mail program."""
    uri = GLib.filename_to_uri(str(path)) + "\r\n"
    return Gdk.ContentProvider.new_for_bytes("text/uri-list", GLib.Bytes.new(uri.encode()))


def drag_content(data: bytes, mime: str, name: str) -> Gdk.ContentProvider:
    """What a drag out of the window carries: the image, and a file with a descriptive name."""
    folder = Path(GLib.get_user_cache_dir()) / "neurolux-imagegen" / "dragged"
    path = folder / name
    if not path.is_file() or path.read_bytes() != data:
        path = save_new(folder, name, data)
    return Gdk.ContentProvider.new_union([file_content(path), clipboard_content(data, mime)])
