"""The report's one style sheet. System fonts and no scripts: the page must open anywhere, without a network."""

CSS = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1b2028; --soft: #5a6472; --line: #dde1e7;
  --accent: #2557c7; --bar: #b9cbf3; --good: #146c3f; --good-bg: #e3f4ea; --bad: #a3201d; --bad-bg: #fce8e7;
  --open: #7a4d00; --open-bg: #fdf1d8; }
@media (prefers-color-scheme: dark) { :root { --page: #13161b; --card: #1b1f26; --ink: #e4e8ee; --soft: #9aa5b4;
  --line: #303742; --accent: #8fb1ff; --bar: #34496f; --good: #7fdca6; --good-bg: #17352a; --bad: #ff9c96;
  --bad-bg: #431f20; --open: #f2c66d; --open-bg: #3b2d10; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 .75rem; }
p { margin: 0 0 .75rem; } p:last-child { margin-bottom: 0; }
.soft, dt, th { color: var(--soft); }
header .soft { margin-bottom: 1.25rem; max-width: 48rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1.25rem; margin-top: 1.25rem; }
.verdict { border-radius: .6rem; padding: .8rem 1.1rem; font-weight: 600; }
.verdict.good { background: var(--good-bg); } .verdict.open { background: var(--open-bg); }
.verdict.bad { background: var(--bad-bg); }
.good { color: var(--good); } .open { color: var(--open); font-weight: 700; } .bad { color: var(--bad); font-weight: 700; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .9rem; margin-top: 1.25rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .9rem 1.1rem; }
.card b { display: block; font-size: 1.45rem; line-height: 1.3; font-weight: 650; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: .88rem; }
dl { margin: 0; display: grid; gap: .4rem; } dl div { display: grid; grid-template-columns: 10rem 1fr; gap: .75rem; }
dt, dd { margin: 0; } dd { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; } .scroll + p, .scroll + .scroll, dl + p { margin-top: .9rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; padding: .4rem .9rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 500; font-size: .85rem; white-space: nowrap; }
tbody tr:last-child td { border-bottom: 0; } th:last-child, td:last-child { padding-right: 0; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code { font: .88em ui-monospace, "Cascadia Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.bar { display: block; height: .7rem; min-width: 2px; border-radius: .2rem; background: var(--bar); margin-top: .35rem; }
.bar.after { background: var(--accent); margin-top: .15rem; } .bars { display: block; width: 20rem; }
th.number + th:not(.number), td.number + td:not(.number) { padding-left: 1rem; }
footer { color: var(--soft); font-size: .88rem; margin-top: 1.5rem; }
@media (max-width: 40rem) { main { padding: 1.25rem .75rem 3rem; } section { padding: 1rem .9rem; }
  dl div { grid-template-columns: 1fr; gap: 0; } .bars { width: 6rem; }
  .cards { grid-template-columns: 1fr 1fr; } .card b { font-size: 1.2rem; } }
@media print { body { background: #fff; } section, .card { break-inside: avoid; } }
"""
