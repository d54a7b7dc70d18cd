#!/usr/bin/env bash
# Writes the template of the overlay's translations (or the file named as the argument), and brings each translation
# in overlay/locale/ up to date: LANGUAGE/LC_MESSAGES/neurolux-overlay.po, compiled beside it.
set -euo pipefail
cd "$(dirname "$0")/.."

domain=neurolux-overlay
folder=overlay/locale
template=${1:-$folder/$domain.pot}
mkdir -p "$(dirname "$template")"

# The order is the same on every machine, and there are no line numbers: the file changes when a text does.
mapfile -t sources < <(find overlay -name '*.py' -o -name '*.ui' | LC_ALL=C sort)
xgettext --output="$template" --from-code=UTF-8 --add-location=file --sort-by-file \
  --keyword=_ --keyword=plural:1,2 --package-name="NeuroLux Image Generation" "${sources[@]}"
sed -i -e '/^"POT-Creation-Date:/d' -e '1,/^$/{s/^# SOME DESCRIPTIVE TITLE\./# Texts of the overlay/;/^# Copyright/d;/^# FIRST AUTHOR/d}' \
  -e 's/charset=CHARSET/charset=UTF-8/' "$template"

[ $# -eq 0 ] || exit 0
for po in "$folder"/*/LC_MESSAGES/$domain.po; do
  [ -e "$po" ] || continue
  msgmerge --quiet --update --backup=none "$po" "$template"
  msgfmt --check --output-file="${po%.po}.mo" "$po"
done
