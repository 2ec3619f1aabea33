"""Style sheet of the page: light or dark like the reader's system, from 360 pixels upwards."""

CSS = """\
:root {
  --page: #f6f8fb; --card: #ffffff; --ink: #0f172a; --soft: #5b6879; --line: #e3e8ef;
  --accent: #2563eb; --fill: #dbe6fd; --right: #0a7f4f; --right-fill: #c9f2de; --wrong: #b45309;
  --heat: 37, 99, 235;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0d131c; --card: #161e2a; --ink: #e6ebf2; --soft: #98a5b6; --line: #2a3544;
    --accent: #6ea8fe; --fill: #243a61; --right: #46d39a; --right-fill: #11492f; --wrong: #f0a95b;
    --heat: 96, 165, 250;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  -webkit-text-size-adjust: 100%;
}
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 48px; }
h1 { font-size: 28px; line-height: 1.2; letter-spacing: -.02em; margin: 0 0 6px;
  overflow-wrap: anywhere; }
h2 { font-size: 19px; letter-spacing: -.01em; margin: 44px 0 12px; }
h2 + .lead { margin-top: -8px; }
h3 { font-size: 14px; margin: 0 0 8px; }
p { margin: 0 0 14px; }
.soft { color: var(--soft); }
.lead { color: var(--soft); margin: 0 0 22px; max-width: 96ch; overflow-wrap: anywhere; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 16px; }
.left-out { color: var(--soft); border-style: dashed; overflow-wrap: anywhere; }
.grid { display: grid; gap: 14px; }

.tiles { grid-template-columns: repeat(var(--columns), 1fr); }
.tile { padding: 12px 16px; }
.tile b { display: block; font-size: 22px; line-height: 1.25; letter-spacing: -.02em;
  font-weight: 650;
  font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; }

.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(310px, 1fr)); gap: 0 32px;
  margin: 0; }
.facts div { display: flex; justify-content: space-between; gap: 16px; padding: 6px 0;
  border-bottom: 1px solid var(--line); }
.facts dt { color: var(--soft); flex: none; }
.facts dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
details { margin-top: 14px; }
summary { cursor: pointer; color: var(--accent); }
pre { overflow: auto; max-height: 420px; background: var(--page); border-radius: 8px; padding: 12px;
  margin: 10px 0 0; font: 12.5px/1.45 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }

.charts .card { height: 100%; }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
.charts img { display: block; width: 100%; max-width: 560px; height: auto; margin: 0 auto; }

.tables { grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr));
  align-items: start; }
.scroll { overflow-x: auto; }
.scroll.card { padding: 6px 4px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
.metrics th, .metrics td { padding: 7px 8px; text-align: right; white-space: nowrap; }
.metrics thead th { color: var(--soft); font-weight: 500; font-size: 13px; }
.metrics thead tr:first-child th { text-align: center; padding-bottom: 0; }
.metrics tbody tr { border-top: 1px solid var(--line); }
.metrics .name { text-align: left; font-weight: 400; white-space: normal; min-width: 104px; }
.metrics .name small { display: block; color: var(--soft); overflow-wrap: anywhere; }
.metrics .first { padding-left: 18px; }

.picture { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #fff;
  border-radius: 6px; border: 1px solid var(--line); }
.pixels { image-rendering: pixelated; }

.guesses { grid-template-columns: repeat(auto-fill, minmax(min(100%, 326px), 1fr)); }
.guess { display: grid; grid-template-columns: 88px 1fr; gap: 14px; padding: 12px;
  align-content: start; }
.guess ol { list-style: none; margin: 0; padding: 0; display: grid; gap: 3px; min-width: 0; }
.guess li { position: relative; display: flex; justify-content: space-between; gap: 8px;
  padding: 1px 7px;
  font-size: 13px; line-height: 1.4; border-radius: 4px; overflow: hidden; }
.guess li i { position: absolute; inset: 0 auto 0 0; background: var(--fill); }
.guess li span { position: relative; overflow-wrap: anywhere; }
.guess li span:last-child { flex: none; color: var(--soft); font-variant-numeric: tabular-nums; }
.guess li.true { font-weight: 600; color: var(--right); }
.guess li.true i { background: var(--right-fill); }
.guess li.true span:last-child { color: inherit; }
.verdict { font-size: 12.5px; margin: 6px 0 0; line-height: 1.35; text-align: center; }
.is-right { color: var(--right); font-weight: 600; }
.is-wrong { color: var(--wrong); }
.truth { grid-column: 1 / -1; margin: 0; font-size: 12.5px; line-height: 1.35;
  overflow-wrap: anywhere; }

.query { margin-bottom: 14px; }
.query h3 span { font-weight: 400; font-size: 13px; }
.query h3 { font-size: 15px; overflow-wrap: anywhere; }
.results { display: grid; grid-template-columns: repeat(8, minmax(0, 1fr)); gap: 12px; margin: 0;
  padding: 0;
  list-style: none; }
.results b { display: block; font-size: 13px; margin-top: 4px; font-variant-numeric: tabular-nums; }
.results span { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3;
  overflow: hidden;
  font-size: 11.5px; line-height: 1.3; color: var(--soft); overflow-wrap: anywhere; }
.results .hit .picture { outline: 3px solid var(--right); outline-offset: -1px; }
.results .hit b, .results .hit span { color: var(--right); }

.heat { border-collapse: separate; border-spacing: 3px; width: auto; margin: 0 auto; }
.heat th { font-weight: 400; padding: 0; }
.heat thead th { width: 68px; min-width: 46px; vertical-align: bottom; }
.heat tbody th { text-align: right; padding-right: 10px; font-size: 13px; line-height: 1.3;
  min-width: 300px;
  max-width: 360px; overflow-wrap: anywhere; }
.heat td { height: 46px; text-align: center; font-size: 13px; border-radius: 5px; }
.heat td.pair { outline: 2px solid var(--ink); outline-offset: -2px; font-weight: 650; }

footer { margin-top: 44px; color: var(--soft); font-size: 13px; }
@media (max-width: 640px) {
  main { padding: 20px 12px 36px; }
  h1 { font-size: 24px; }
  .card { padding: 12px; }
  .tiles { grid-template-columns: repeat(2, 1fr); gap: 10px; }
  .tile b { font-size: 19px; }
  .facts { grid-template-columns: 1fr; }
  .results { grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 10px; }
  .results span { font-size: 11px; }
  .metrics th, .metrics td { padding: 6px 3px; font-size: 12.5px; }
  .metrics thead th { font-size: 11.5px; }
  .metrics .name { min-width: 76px; }
  .metrics .name small { font-size: 11px; }
  .metrics .first { padding-left: 8px; }
  .heat tbody th { min-width: 84px; max-width: 110px; font-size: 11px; padding-right: 4px; }
  .heat thead th { width: 31px; min-width: 31px; }
  .heat { border-spacing: 1px; }
  .heat td { font-size: 10.5px; height: 36px; border-radius: 4px; }
}
"""
