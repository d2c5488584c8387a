"""The style sheet of a page: light and dark, from phones to paper."""

from __future__ import annotations

LEVELS = 10  # shades of a confusion matrix
SERIES = ("--right", "--wrong", "--third", "--fourth", "--fifth", "--sixth")  # colours of lines, told apart by eye


def _shades() -> str:
    """``.r1`` to ``.r10``: shares of right answers; ``.e1`` to ``.e10``: of wrong ones."""
    lines = []
    for name, colour in (("r", "--right"), ("e", "--wrong")):
        for level in range(1, LEVELS + 1):
            strong = ";color:var(--on-strong)" if level > 0.5 * LEVELS else ""
            share = 14 + 86 * (level - 1) // (LEVELS - 1)  # the lowest is visible too
            lines.append(f".{name}{level}{{background:color-mix(in srgb,var({colour}) {share}%,transparent){strong}}}")
    return "\n".join(lines)


STYLE = (
    """
:root{color-scheme:light dark;--paper:#fff;--ink:#1c2430;--quiet:#5a6675;--line:#d9dee5;--soft:#f4f6f9;
--right:#1f6fd6;--wrong:#d1570a;--third:#0f8a6d;--fourth:#8a4fc4;--fifth:#a3780c;--sixth:#c43d7a;--on-strong:#fff}
@media (prefers-color-scheme:dark){:root{--paper:#12161c;--ink:#e4e8ee;--quiet:#9aa6b5;--line:#323b47;--soft:#1b212a;
--right:#6cabff;--wrong:#ff9a4d;--third:#4fd0ae;--fourth:#c79bf5;--fifth:#e2bb55;--sixth:#f58fbd;--on-strong:#10141a}}
*{box-sizing:border-box}
html{scroll-padding-top:1rem;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:1rem/1.5 system-ui,sans-serif}
main{max-width:76rem;margin:0 auto;padding:1rem 1rem 4rem}
h1{font-size:1.7rem;line-height:1.2;margin:1rem 0 .4rem;overflow-wrap:anywhere}
h2{font-size:1.3rem;margin:3rem 0 .6rem;padding-top:.8rem;border-top:1px solid var(--line);overflow-wrap:anywhere}
h3{font-size:1.05rem;margin:1.8rem 0 .5rem;overflow-wrap:anywhere}
p{margin:.5rem 0;max-width:46rem}
a{color:var(--right)}
.quiet{color:var(--quiet)}
nav{display:flex;flex-wrap:wrap;gap:.3rem 1rem;margin:1.2rem 0;font-size:.9rem}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(10rem,1fr));gap:.8rem;margin:1.2rem 0}
.card{background:var(--soft);border:1px solid var(--line);border-radius:.5rem;padding:.7rem .9rem}
.card b{display:block;font-size:1.7rem;line-height:1.25;font-variant-numeric:tabular-nums}
.card span{display:block;font-size:.85rem;overflow-wrap:anywhere}
.scroll{overflow-x:auto;max-width:100%;margin:.6rem 0}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .7rem .25rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
thead th{color:var(--quiet);font-weight:600;vertical-align:bottom}
tbody th{font-weight:400;max-width:22rem}
tbody th,td{overflow-wrap:anywhere}
tbody th,td:not(.n){min-width:7rem}
tbody th small{display:block}
.n{text-align:right;white-space:nowrap}
thead .n{white-space:normal}
.meter{display:inline-block;min-width:5.5rem;padding:0 .3rem;border-radius:.2rem;
background:linear-gradient(90deg,color-mix(in srgb,var(--right) 30%,transparent) var(--share),var(--soft) var(--share))}
.range{display:block;position:relative;min-width:5.5rem;height:.8rem;margin:.2rem 0;
background:linear-gradient(var(--line),var(--line)) 0 50%/100% 1px no-repeat}
.range::before,.range::after,.range i{content:"";position:absolute}
.range::before{left:var(--from);width:max(2px,calc(var(--to) - var(--from)));top:.25rem;height:.3rem;
border-radius:.15rem;background:color-mix(in srgb,var(--right) 45%,transparent)}
.range::after{left:calc(var(--at) - .2rem);top:.2rem;width:.4rem;height:.4rem;border-radius:50%;background:var(--right)}
.range i{left:calc(var(--mark) - 1px);top:0;width:2px;height:100%;background:var(--wrong)}
.label{font-weight:600;overflow-wrap:anywhere}
.raw{font-family:ui-monospace,monospace;font-size:.85em;white-space:pre-wrap;overflow-wrap:anywhere;
background:var(--soft);border-radius:.2rem;padding:.05rem .25rem}
blockquote{margin:.35rem 0;padding:.1rem 0 .1rem .8rem;border-left:3px solid var(--line);font-size:.92rem;
overflow-wrap:anywhere;max-width:50rem}
.pairs{padding-left:1.6rem}
.pairs>li{margin:.7rem 0}
mark{background:color-mix(in srgb,var(--right) 22%,transparent);color:inherit;border-radius:.2rem;padding:0 .2rem}
mark.wrong{background:color-mix(in srgb,var(--wrong) 28%,transparent)}
mark small{color:var(--quiet);padding-left:.35rem}
.sides{display:grid;grid-template-columns:4.8rem 1fr}
.sides>span{color:var(--quiet);font-size:.85rem}
.facts span{display:inline-block;margin-right:1.2rem}
.facts b{font-weight:400;color:var(--quiet)}
details{margin:.8rem 0}
summary{cursor:pointer;color:var(--quiet)}
.charts{display:flex;flex-wrap:wrap;gap:1rem 2rem}
figure{margin:.5rem 0;flex:0 1 32rem;min-width:0;max-width:32rem}
figure svg{display:block;width:100%;height:auto}
figure svg text{font-family:system-ui,sans-serif}
figcaption{font-size:.88rem;color:var(--quiet)}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;font-size:.88rem}
.legend i{display:inline-block;width:.8rem;height:.8rem;border-radius:.2rem;margin-right:.4rem;vertical-align:-.08rem}
.matrix{font-size:.7rem;line-height:1;border-collapse:separate;border-spacing:1px}
.matrix th,.matrix td{border:0;padding:0;min-width:0}
.matrix .label{font-weight:400}
.matrix td{width:1.65rem;min-width:1.65rem;height:1.65rem;text-align:center;vertical-align:middle;overflow-wrap:normal;
border-radius:2px}
.matrix td:not([class]){background:var(--soft)}
.matrix tbody th{position:sticky;left:0;background:var(--paper);padding-right:.4rem;text-align:right;
vertical-align:middle;white-space:nowrap;max-width:13rem;overflow:hidden;text-overflow:ellipsis}
.matrix thead th{height:1px;vertical-align:bottom;font-weight:400;color:var(--ink)}
.matrix thead th span{writing-mode:vertical-rl;transform:rotate(180deg);white-space:nowrap;max-height:13rem;
overflow:hidden;text-overflow:ellipsis;padding:.3rem 0 0;margin:0 auto;display:block}
.matrix.small{font-size:.62rem}
.matrix.small td{width:.8rem;min-width:.8rem;height:.8rem}
.shades span{display:inline-block;font-size:.75rem;padding:0 .35rem;margin:0 1px;border-radius:2px}
.matrix .total{background:none;width:auto;padding-left:.5rem;color:var(--quiet);text-align:right}
@media (max-width:40rem){main{padding:.5rem .8rem 3rem}.matrix tbody th{max-width:7.5rem}
.cards{grid-template-columns:repeat(auto-fill,minmax(9rem,1fr))}.card b{font-size:1.4rem}}
@media print{:root{color-scheme:light;--paper:#fff;--ink:#000;--quiet:#444;--line:#bbb;--soft:#f2f2f2;--right:#1f6fd6;
--wrong:#d1570a;--third:#0f8a6d;--fourth:#8a4fc4;--fifth:#a3780c;--sixth:#c43d7a;--on-strong:#fff}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}body{font-size:10pt}main{max-width:none;padding:0}
nav{display:none}.scroll{overflow:visible}figure,.pairs>li,tr,.matrix{break-inside:avoid}h2,h3{break-after:avoid}
details::details-content{content-visibility:visible;block-size:auto}
.matrix td{width:1.2rem;min-width:1.2rem;height:1.2rem}.matrix{font-size:6pt}
.matrix.small td{width:.5rem;min-width:.5rem;height:.5rem}.matrix.small{font-size:4.5pt;border-spacing:0}}
"""
    + _shades()
    + "\n"
)
