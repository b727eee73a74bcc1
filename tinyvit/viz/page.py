"""A page that is one file: no server, no network, no script, readable on a phone, in the dark and on paper.

Everything that is not markup of ours passes `escape`: a class is named after a folder, and a folder can have any name.
Pictures stand in the page as data. Colours are CSS variables with two values each, which the curves use too.
"""

import base64
import html
import io

from PIL import Image

from tinyvit.viz.figure import png, svg

PIXELS = 64  # a side; up to here the exact pixels are kept, a larger image becomes a JPEG of twice that
STYLE = """
:root { color-scheme: light dark; --page: #fff; --card: #f5f6f8; --ink: #1c2127; --grey: #5c6670; --faint: #dfe3e8;
  --blue: #0072b2; --orange: #d98200; --mark: 0 114 178; }
@media screen and (prefers-color-scheme: dark) {
  :root { --page: #15181c; --card: #1e2328; --ink: #e5e8eb; --grey: #a0a9b3; --faint: #363d45;
    --blue: #56b4e9; --orange: #e69f00; --mark: 20 130 200; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", sans-serif; }
main { max-width: 62rem; margin: auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: .7rem; border-top: 1px solid var(--faint); }
h3 { font-size: 1rem; margin: 1rem 0 .3rem; }
p { margin: .4rem 0; max-width: 46rem; overflow-wrap: anywhere; }
.note { padding: .5rem .8rem; border-left: .3rem solid var(--orange); background: var(--card); }
.about, figcaption { color: var(--grey); font-size: .875rem; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(7.6rem, 1fr)); gap: .6rem; margin: 1.2rem 0; }
dl div { background: var(--card); border-radius: .4rem; padding: .5rem .7rem; }
dt { color: var(--grey); font-size: .8rem; }
dd { margin: 0; font-size: 1.1rem; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.panels, .tables { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr));
  gap: 1rem 2rem; align-items: start; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(var(--tile, 6.5rem), 1fr)); gap: .9rem .7rem; }
figure { margin: 0; break-inside: avoid; }
figcaption { line-height: 1.35; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: system-ui, "Segoe UI", sans-serif !important; }
.tiles img { display: block; width: 100%; border-radius: .2rem; image-rendering: pixelated; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .2rem; }
.card { display: block; width: 100%; max-width: 46rem; background: #fff; border-radius: .4rem; }
.keys > span { white-space: nowrap; margin-right: 1.2rem; }
.key { display: inline-block; width: 1.6em; border-top: .2em solid; vertical-align: .25em; margin-right: .4em; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: left; border-bottom: 1px solid var(--faint); vertical-align: top; }
th { font-weight: 600; }
td { overflow-wrap: anywhere; }
.tables th { font-weight: normal; color: var(--grey); white-space: nowrap; }
.tables table { width: 100%; }
.tables th { width: 9.5rem; }
.number td, .number th { white-space: nowrap; }
.number td, .number thead th + th { text-align: right; }
.counts td, .counts th { text-align: center; padding: .2rem .3rem; min-width: 2.1rem; border: 1px solid var(--faint);
  white-space: nowrap; }
.counts tbody th { text-align: right; font-weight: normal; }
.counts thead th { font-weight: normal; vertical-align: bottom; }
.counts tbody th, .counts .long { max-width: min(12rem, 30vw); overflow: hidden; text-overflow: ellipsis; }
.counts .long { max-width: none; max-height: 9rem; writing-mode: vertical-rl; transform: rotate(180deg); margin: auto; }
.counts .right { color: var(--grey); }
.counts .wrong { background: rgb(var(--mark) / var(--share)); print-color-adjust: exact; }
pre { background: var(--card); padding: .6rem .8rem; border-radius: .4rem; white-space: pre-wrap;
  overflow-wrap: anywhere; margin: .3rem 0 .8rem; }
code { font: .875rem/1.5 ui-monospace, Consolas, monospace; }
@media print { body { font-size: 10pt; } main { max-width: none; padding: 0; } h2 { break-after: avoid; }
  .scroll { overflow: visible; } tr { break-inside: avoid; } .panels { grid-template-columns: 1fr 1fr; } }
"""


def escape(thing):
    """Anything as text for HTML, in an attribute too."""
    return html.escape(str(thing))


def page(title, *parts):
    """The file: a title as text, parts as HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="generator" content="tinyvit">\n'
        # Whatever might slip in somewhere: nothing runs, nothing is fetched.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(filter(None, parts))
        + "\n</main>\n</body>\n</html>\n"
    )


def section(heading, *parts):
    """A heading as text, and below it parts as HTML."""
    return f"<section>\n<h2>{escape(heading)}</h2>\n" + "\n".join(filter(None, parts)) + "\n</section>"


def paragraph(text, kind=""):
    """A text as a paragraph; nothing for no text."""
    if not text:
        return ""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def facts(pairs):
    """The few numbers that count, {name: value}."""
    rows = (f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs.items())
    return f"<dl>{''.join(rows)}</dl>"


def settings(heading, pairs):
    """A table of {name: value} under a small heading."""
    rows = (f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in pairs.items())
    return f"<div><h3>{escape(heading)}</h3><table>{''.join(rows)}</table></div>"


def scrolling(table, label):
    """A table that may be wider than the page, which a keyboard can scroll too."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{table}</div>'


def plot(figure, name, alt, caption):
    """A figure of curves in the page's colours, see `figure.svg`."""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{svg(figure, name, alt)}</figure>"


def drawing(figure, alt):
    """Any other figure as PNG, on white."""
    return f'<img class="card" src="{_data("png", png(figure))}" alt="{escape(alt)}">'


def thumbnail(image):
    """(h, w, C) uint8 as a Pillow image, of at most 2 · PIXELS a side."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    if max(picture.size) > PIXELS:
        picture.thumbnail((2 * PIXELS, 2 * PIXELS))
    return picture


def tile(picture, alt):
    """A Pillow image as <img>; the CSS gives it its size."""
    exact, content = max(picture.size) <= PIXELS, io.BytesIO()
    picture.save(content, "PNG" if exact else "JPEG", optimize=True, **({} if exact else {"quality": 85}))
    return f'<img src="{_data("png" if exact else "jpeg", content.getvalue())}" alt="{escape(alt)}">'


def _data(kind, content):
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
