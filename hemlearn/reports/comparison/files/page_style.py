"""Style of the comparison's page: laptop, phone and paper."""

STYLE = """
:root { --ink: #1a1f24; --soft: #59636e; --line: #d5dae0; --pale: #f4f6f8; --mark: #0b5cad; --bad: #a3281b;
  --good: #12653a; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1.2rem 1rem 3rem; max-width: 76rem; color: var(--ink); background: #fff;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; }
h1 { font-size: 1.55rem; line-height: 1.2; margin: 0 0 .8rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; padding-top: .7rem; border-top: 1px solid var(--line); }
h3 { font-size: .98rem; margin: 1.2rem 0 .4rem; }
p, ul { margin: .4rem 0 .7rem; max-width: 62rem; }
ul { padding-left: 1.2rem; }
a { color: var(--mark); }
.small, figcaption { font-size: .84rem; color: var(--soft); }
nav { font-size: .88rem; margin: .9rem 0 0; line-height: 1.9; }
nav a { margin-right: .9rem; white-space: nowrap; }
.headline { border: 1px solid var(--line); border-left: 5px solid var(--mark); background: var(--pale);
  padding: .7rem 1rem .3rem; border-radius: 4px; }
.headline dt { font-weight: 650; }
.headline dd { margin: 0 0 .6rem; overflow-wrap: anywhere; }
.warning { border: 1px solid var(--bad); color: var(--bad); background: #fdf3f1; padding: .5rem .8rem;
  border-radius: 4px; font-weight: 600; margin: 0 0 .8rem; }
.scroll { overflow-x: auto; max-width: 100%; margin: .4rem 0 .8rem; border: 1px solid var(--line); border-radius: 4px; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .32rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
tr:last-child > td, tr:last-child > th { border-bottom: 0; }
thead th { background: var(--pale); font-weight: 600; white-space: nowrap; vertical-align: bottom; }
tbody th { font-weight: 600; }
.n { text-align: right; white-space: nowrap; }
.setting { min-width: 5rem; max-width: 20rem; overflow-wrap: anywhere; }
.null td, .null th { color: var(--soft); font-style: italic; }
.yes { background: #e7f2ea; color: var(--good); font-weight: 600; }
.no { color: var(--soft); }
.self { background: var(--pale); }
.name { display: inline-block; margin-right: .9rem; max-width: 100%; overflow-wrap: anywhere; }
td .named { display: block; min-width: 9.5rem; max-width: 26rem; }
.how { display: block; min-width: 11rem; }
.line { white-space: nowrap; }
td .small { font-size: .92em; }
.key { display: inline-block; min-width: 1.45em; padding: 0 .3em; border-radius: 3px; color: #fff; background: #6a737d;
  font-weight: 650; text-align: center; font-size: .82em; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: .8rem; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 4px; padding: .5rem; break-inside: avoid; }
figure img { width: 100%; height: auto; display: block; }
.confusions { display: flex; flex-wrap: wrap; gap: .8rem; }
.confusions > div { border: 1px solid var(--line); border-radius: 4px; padding: .5rem .6rem; max-width: 100%;
  overflow-x: auto; }
.confusions table { width: auto; }
.confusions h3 { margin: 0 0 .3rem; font-size: .84rem; max-width: 22rem; overflow-wrap: anywhere; }
details > summary { cursor: pointer; color: var(--mark); margin: .3rem 0; }
code { font-size: .92em; overflow-wrap: anywhere; }
footer { margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: .6rem; }
@media (max-width: 40rem) {
  body { padding: .8rem .7rem 2rem; font-size: 14.5px; }
  h1 { font-size: 1.3rem; }
  .setting { max-width: 11rem; }
  th, td { padding: .3rem .45rem; }
}
@page { size: A4 landscape; margin: 11mm; }
@media print {
  body { max-width: none; padding: 0; font-size: 9.5pt; }
  nav { display: none; }
  h2 { break-after: avoid; margin-top: 1.2rem; }
  h3 { break-after: avoid; }
  .scroll { overflow: visible; border: 0; }
  table { font-size: 7.4pt; }
  th, td { padding: .12rem .3rem; }
  thead { display: table-header-group; }
  thead th, .n { white-space: normal; }
  tr, figure, .confusions > div, .headline { break-inside: avoid; }
  .figures { grid-template-columns: repeat(3, 1fr); }
  .setting { max-width: 12rem; min-width: 0; }
  td .named, .how { min-width: 0; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
