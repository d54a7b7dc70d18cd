#!/usr/bin/env bash
# Installs the Debian packages that tests need and that are missing. With nothing missing it does nothing, as anyone.
set -euo pipefail

python=$(dirname "$0")/../.venv/bin/python # the Python that runs the tests
[ -x "$python" ] || python=python3
read -r version headers < <("$python" -c 'import sys, sysconfig
print("%d.%d" % sys.version_info[:2], sysconfig.get_path("include"))')

# program or file that must exist, and the package that brings it
programs=(
  "curl:curl"                        # the examples of the docs
  "openssl:openssl"                  # the certificates of the tests of TLS
  "g++:g++"                          # what torch.compile compiles with
  "chromium:chromium"                # the editor tests and the workflow export
  "Xvfb:xvfb"                        # the overlay's screen
  "dbus-daemon:dbus"                 # its session bus
  "gdbus:libglib2.0-bin"             # and what calls it: gdbus, gapplication, gsettings
  "openbox:openbox"                  # its window manager
  "xprop:x11-utils"                  # what that knows of a window
  "xclip:xclip"                      # another program that pastes
  "desktop-file-validate:desktop-file-utils"
  "xfconf-query:xfconf"              # settings of Xfce
  "kwriteconfig5:libkf5config-bin"   # of Plasma
  "xgettext:gettext"                 # the template of translations
)
files=(
  "$headers/Python.h:python$version-dev" # what torch.compile writes includes it
  "/usr/lib/*/libatomic.so.1:libatomic1" # Playwright's node
  "/usr/lib/python3/dist-packages/gi:python3-gi"
  "/usr/lib/*/girepository-1.0/Gtk-4.0.typelib:gir1.2-gtk-4.0"
  "/usr/lib/*/girepository-1.0/Adw-1.typelib:gir1.2-adw-1"
  "/usr/lib/*/girepository-1.0/Atspi-2.0.typelib:gir1.2-atspi-2.0"
  "/usr/libexec/at-spi-bus-launcher:at-spi2-core"
  "/usr/share/icons/Adwaita:adwaita-icon-theme"
  "/usr/lib/*/libxfconf-0.so.3:libxfconf-0-3" # xfconf only recommends it
  "/usr/lib/*/gio/modules/libdconfsettings.so:dconf-gsettings-backend"
  "/usr/share/glib-2.0/schemas/org.gnome.desktop.wm.keybindings.gschema.xml:gsettings-desktop-schemas"
  "/usr/share/glib-2.0/schemas/org.gnome.settings-daemon.plugins.media-keys.gschema.xml:gnome-settings-daemon-common"
  "/usr/share/glib-2.0/schemas/org.cinnamon.desktop.keybindings.gschema.xml:cinnamon-desktop-data"
)

missing=()
for entry in "${programs[@]}"; do
  command -v "${entry%%:*}" >/dev/null || missing+=("${entry#*:}")
done
for entry in "${files[@]}"; do
  compgen -G "${entry%%:*}" >/dev/null || missing+=("${entry#*:}")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null; then
  echo "the tests need: ${missing[*]}; there is no apt-get here, so install them yourself" >&2
  exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! sudo -n true 2>/dev/null; then
    echo "the tests need: ${missing[*]}; run: sudo apt-get install ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}"
