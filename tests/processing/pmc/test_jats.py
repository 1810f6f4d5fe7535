"""Parsing of figures, captions and mentions in JATS."""

import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

from biomedclip.processing.pmc.jats import MAX_MARKS, MAX_XML_BYTES, JatsError, parse_figures


def article(body: str, *, head: str = "") -> bytes:
    return (
        f'{head}<article xmlns:xlink="http://www.w3.org/1999/xlink" xmlns:mml="http://www.w3.org/1998/Math/MathML">'
        f"<body>{body}</body></article>"
    ).encode()


def figure(caption: str, *, figure_id: str = "F1", rest: str = '<graphic xlink:href="g1"/>') -> str:
    return f'<fig id="{figure_id}"><label>Figure 1.</label><caption>{caption}</caption>{rest}</fig>'


def caption_of(caption: str) -> str:
    (parsed,) = parse_figures(article(figure(caption)))
    return parsed.caption


TEX = "<tex-math>\\documentclass{a}\\begin{document}$%s$\\end{document}</tex-math>"
POWER = "<mml:math><mml:msup><mml:mi>x</mml:mi><mml:mn>2</mml:mn></mml:msup></mml:math>"
FRACTION = "<mml:math><mml:mfrac><mml:mi>a</mml:mi><mml:mi>b</mml:mi></mml:mfrac></mml:math>"


@pytest.mark.parametrize(
    ("rest", "graphics"),
    [
        (
            '<graphic xlink:href="a"><label>A</label></graphic><graphic xlink:href="b"><label>B</label></graphic>',
            [(("a",), "A"), (("b",), "B")],
        ),
        (
            '<alternatives><graphic xlink:href="a.tif"/><graphic xlink:href="a.jpg"/></alternatives>',
            [(("a.tif", "a.jpg"), None)],
        ),
        ('<graphic content-type="x" id="i1" position="float" xlink:href="right"/>', [(("right",), None)]),
    ],
)
def test_every_graphic_is_kept_with_its_panel_and_alternatives_are_one_graphic(rest, graphics):
    (parsed,) = parse_figures(article(figure('<p>With <inline-graphic xlink:href="symbol"/> symbol.</p>', rest=rest)))
    assert parsed.caption == "With symbol."
    assert [(graphic.hrefs, graphic.panel) for graphic in parsed.graphics] == graphics


@pytest.mark.parametrize(
    "wrap",
    [
        "<sec><p>Text {}</p></sec>",
        "<boxed-text>{}</boxed-text>",
        "<fig-group>{}</fig-group>",
        "</body><back><app-group><app>{}</app></app-group></back><body>",
        "</body><floats-group>{}</floats-group><body>",
        "</body><sub-article><body>{}</body></sub-article><body>",
    ],
)
def test_figures_are_found_in_every_place(wrap):
    (parsed,) = parse_figures(article(wrap.format(figure("<p>Here.</p>"))))
    assert parsed.caption == "Here."


def test_mentions_are_the_paragraphs_that_refer_to_the_figure():
    body = (
        '<p>First, <xref ref-type="fig" rid="F1">Fig. 1</xref> shows.</p><p>Nothing.</p>'
        '<p>Both (<xref ref-type="fig" rid="F1 F2">Figs 1, 2</xref>).</p>'
    )
    first, second = parse_figures(article(body + figure("<p>a</p>") + figure("<p>b</p>", figure_id="F2")))
    assert first.mentions == ("First, Fig. 1 shows.", "Both (Figs 1, 2).")
    assert second.mentions == ("Both (Figs 1, 2).",)


@pytest.mark.parametrize(
    ("names", "figure_ids"),
    [
        (["F1", "F1", ""], ["F1", "F1-2", "fig-3"]),
        (["F1", "F1-3", "F1", "fig-5", ""], ["F1", "F1-3", "F1-3-3", "fig-5", "fig-5-5"]),
    ],
)
def test_figures_that_share_an_id_or_have_none_get_distinct_ones(names, figure_ids):
    body = "".join(f'<fig id="{name}"/>' for name in names)
    assert [parsed.figure_id for parsed in parse_figures(article(body))] == figure_ids


def test_an_entity_bomb_is_refused():
    bomb = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    with pytest.raises(JatsError, match="amplification"):
        parse_figures(article(figure("<p>Boom &e11;</p>"), head=f'<!DOCTYPE article [<!ENTITY e0 "boom">{bomb}]>'))


def test_entities_are_not_expanded_and_no_file_is_read():
    head = '<!DOCTYPE article SYSTEM "JATS.dtd" [<!ENTITY one "expanded"><!ENTITY file SYSTEM "file:///etc/passwd">]>'
    (parsed,) = parse_figures(article(figure("<p>Safe &one;&file;&#x3B1;</p>"), head=head))
    assert parsed.caption == "Safe α"


@pytest.mark.parametrize(
    "xml", [b"", b"no xml", b"<article><body><fig>", b"<html/>", b"\x00\x01", article("<p>" * 100_000)], ids=len
)
def test_xml_without_an_article_or_with_deep_nesting_is_refused(xml):
    with pytest.raises(JatsError, match="XML"):
        parse_figures(xml)


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("Of <italic>E. <bold>coli</bold></italic> at 37 °C.", "Of E. coli at 37 °C."),
        ("</p><title>A title.</title>\n  <p>First.</p><p>Second.", "A title. First. Second."),
        (f"Where <alternatives>{TEX % 'x^2'}{POWER}</alternatives> grows.", "Where x^2 grows."),
        (f"Sum {TEX % 'a+b'} here", "Sum a+b here"),
        (f"Ratio {FRACTION}", "Ratio a/b"),
        ("5 &#xB5;m,&#160;thin&#x2009;space", "5 µm, thin space"),
        ("hyphen&#xAD;ated zero&#x200B;width", "hyphenated zerowidth"),
        ("“quoted” – dashed — α", "“quoted” – dashed — α"),
        ("<named-content>a</named-content><styled-content>b</styled-content><sc>c</sc><email>d@e</email>", "abcd@e"),
        ("one<break/>two", "one two"),
        ("See:<disp-formula><mml:math><mml:mi>E</mml:mi></mml:math></disp-formula>, then", "See: E, then"),
        ("Text<table-wrap><table><tr><td>cell</td></tr></table></table-wrap>goes on", "Text goes on"),
        ("Note<fn><p>left out</p></fn>.", "Note."),
        ("<def-list><def-item><term>CI</term><def><p>interval</p></def></def-item></def-list>", "CI interval"),
        (
            "<list><list-item><label>•</label><p>one</p></list-item><list-item><label>1.</label><p>two</p>"
            "</list-item></list>",
            "one two",
        ),
        ("a<!-- comment -->b<?processing instruction?>c", "abc"),
        ("Alt<alt-text>hidden</alt-text><index-term><term>hidden</term></index-term>", "Alt"),
        ("space : before points stays ; as it is", "space : before points stays ; as it is"),
        ("an empty pair () stays [] too", "an empty pair () stays [] too"),
        ("a symbol (<inline-graphic/>) , and", "a symbol, and"),
    ],
)
def test_texts_are_those_that_a_reader_sees(markup, text):
    assert caption_of(f"<p>{markup}</p>") == text


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("about 10<sup>6</sup> cells", "about 10^6 cells"),
        ("10<sup>−3</sup> M", "10^−3 M"),
        ("H<sub>2</sub>O", "H2O"),
        ("Ca<sup>2+</sup>", "Ca2+"),
        ("the 1<sup>st</sup> day", "the 1st day"),
        ("in 2<sup>8</sup> steps", "in 2^8 steps"),
        ("cm<sup>2</sup>", "cm2"),
        ("<sup>3</sup>H", "3H"),
        ("[<sup>3</sup>H]", "[3H]"),
        ("(a+b)<sup>2</sup>", "(a+b)^2"),
        ("10<sup><italic>−</italic>6</sup>", "10^−6"),
        ("10<sup>10<sup>6</sup></sup>", "10^10^6"),
        ("SO<sub>4</sub><sup>2−</sup>", "SO4^2−"),
        ("CD4<sup>+</sup>25", "CD4+25"),
        ("p53<sup>−/−</sup>", "p53−/−"),
        ("IC<sub>50</sub> V<sub>max</sub>", "IC50 Vmax"),
    ],
)
def test_a_caret_is_written_only_where_a_number_would_change(markup, text):
    assert caption_of(f"<p>{markup}</p>") == text


def cite(shown: str, kind: str = "bibr") -> str:
    return f'<xref ref-type="{kind}" rid="B1">{shown}</xref>'


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        (f"as before [{cite('12')}, {cite('13')}].", "as before."),
        (f"as before [{cite('12')},{cite('14')}–{cite('17')}].", "as before."),
        (f"{cite('Fig. 2', 'fig')} and {cite('Smith et al.')}", "Fig. 2 and Smith et al."),
        (f"as before {cite('[12]')}, {cite('[13]')}, but", "as before, but"),
        (f"as before [{cite('12')}], [{cite('13')}] and", "as before and"),
        (f"as before [{cite('12')} and {cite('13a')}]", "as before"),
        (f"as before.<sup>{cite('12')},{cite('13')}</sup> Then", "as before. Then"),
        (f"10{cite('<sup>6</sup>')} cells", "10 cells"),
        (f"Cao et al. {cite('[3]')}.", "Cao et al."),
        (f"(updated from Cao et al {cite('[3]')}).", "(updated from Cao et al)."),
        (f"(updated from Cao et al {cite('[3]')})", "(updated from Cao et al)"),
        (f"([{cite('3')}])", ""),
        (f"(Smith 2010; {cite('3')})", "(Smith 2010)"),
        (f"({cite('3')}; see Smith)", "(see Smith)"),
        (f"studies[{cite('3')}]were", "studies were"),
        (f"Reiter, {cite('1994')}; {cite('Smith et al., 2010')}", "Reiter, 1994; Smith et al., 2010"),
        (f"Smith ({cite('2006a')})", "Smith (2006a)"),
        (f"{cite('[1: fig. 10]')} and {cite('Ref. 5')}", "[1: fig. 10] and Ref. 5"),
        (f"cells{cite('12', 'ref')}.", "cells."),
        (f"value{cite('*', 'table-fn')} and more<sup>{cite('a', 'fn')},{cite('b', 'fn')}</sup>", "value and more"),
        (f"{cite('see note', 'fn')} {cite('Table 2', 'table')} {cite('Methods', 'sec')}", "see note Table 2 Methods"),
        (f"{cite('SEM', 'fn')} and {cite('SD', 'fn')} of", "SEM and of"),
        (f"0.5 {cite('[12]')} .5", "0.5 .5"),
    ],
)
def test_numeric_references_are_left_out_with_their_punctuation(markup, text):
    assert caption_of(f"<p>{markup}</p>") == text


def test_a_paragraph_that_is_only_an_identifier_is_left_out():
    identifier = "<p><bold>DOI:</bold> <ext-link>http://dx.doi.org/10.7554/eLife.00001.003</ext-link></p>"
    assert caption_of(f"<title>Title.</title><p>Text.</p>{identifier}") == "Title. Text."
    assert caption_of("<p>Data: doi:10.5061/dryad.1.</p>") == "Data: doi:10.5061/dryad.1."


def math(content: str) -> str:
    tagged = re.sub(r"<(/?)(\w)", r"<\1mml:\2", f"<math>{content}</math>")
    return caption_of(f"<p><inline-formula>{tagged}</inline-formula></p>")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("<mi>x</mi> <mo>=</mo> <mn>0</mn> <mo>.</mo> <mn>5</mn>", "x=0.5"),
        ("<msub><mi>x</mi><mi>i</mi></msub>", "x_i"),
        ("<msup><mi>x</mi><mrow><mi>n</mi><mo>+</mo><mn>1</mn></mrow></msup>", "x^(n+1)"),
        ("<msup><mn>10</mn><mrow><mo>−</mo><mn>3</mn></mrow></msup>", "10^−3"),
        ("<msup><mn>10</mn><mrow><mrow><mo>−</mo></mrow><mn>3</mn></mrow></msup>", "10^−3"),
        ("<msup><mi>w</mi><mo>⋆</mo></msup>", "w^⋆"),
        ("<msup><mi>f</mi><mo>′</mo></msup>", "f′"),
        ("<msubsup><mi>x</mi><mi>i</mi><mn>2</mn></msubsup>", "x_i^2"),
        ("<msup><mi>x</mi><mfrac><mn>1</mn><mn>2</mn></mfrac></msup>", "x^(1/2)"),
        ("<mfrac><mrow><mi>a</mi><mo>+</mo><mi>b</mi></mrow><mi>c</mi></mfrac>", "(a+b)/c"),
        ("<mfrac><mrow><mo>(</mo><mi>a</mi><mo>+</mo><mi>b</mi><mo>)</mo></mrow><mi>c</mi></mfrac>", "(a+b)/c"),
        ("<mfrac><mrow><mo>−</mo><mn>1</mn></mrow><mi>c</mi></mfrac>", "−1/c"),
        ("<mfrac><mrow><mi>(a)</mi><mo>+</mo><mi>(b)</mi></mrow><mi>c</mi></mfrac>", "((a)+(b))/c"),
        ("<mfrac><mrow><mi>()</mi><mo>+</mo><mi>(b)</mi></mrow><mi>c</mi></mfrac>", "(()+(b))/c"),
        ("<mfrac><msup><mi>x</mi><mrow><mi>n</mi><mo>+</mo><mn>1</mn></mrow></msup><mi>c</mi></mfrac>", "x^(n+1)/c"),
        ("<msqrt><mi>a</mi></msqrt>", "√a"),
        ("<msqrt><mi>a</mi><mo>+</mo><mi>b</mi></msqrt>", "√(a+b)"),
        ("<mroot><mi>a</mi><mn>3</mn></mroot>", "√[3]a"),
        ("<mover><mi>x</mi><mo>¯</mo></mover>", "x¯"),
        (
            "<munderover><mo>∑</mo><mrow><mi>i</mi><mo>=</mo><mn>1</mn></mrow><mi>n</mi></munderover><mi>x</mi>",
            "∑_(i=1)^nx",
        ),
        ("<mfenced><mi>a</mi><mi>b</mi></mfenced>", "(a,b)"),
        ("<mfenced open='[' close=']' separators=';'><mi>a</mi><mi>b</mi></mfenced>", "[a;b]"),
        ("<mi>y</mi><mtext> if \n positive</mtext>", "y if positive"),
        ("<mi>y</mi><mo>&#x2061;</mo><mi>x</mi>", "yx"),
        ("<mtable><mtr><mtd><mn>1</mn></mtd><mtd><mn>0</mn></mtd></mtr></mtable>", "1 0"),
        ("<semantics><mi>x</mi><annotation>\\x</annotation></semantics>", "x"),
    ],
)
def test_a_formula_is_written_on_one_line(content, text):
    assert math(content) == text


def test_the_tex_source_and_the_image_of_a_formula_are_left_out():
    rendered = "<mml:math><mml:mi>x</mml:mi></mml:math>"
    assert caption_of(f"<p><inline-formula><tex-math>$x$</tex-math>{rendered}</inline-formula></p>") == "x"
    assert caption_of(f"<p><inline-formula><graphic/>{rendered}</inline-formula></p>") == "x"
    assert caption_of("<p>where <inline-formula><graphic/></inline-formula>, and</p>") == "where, and"


def test_paragraphs_after_the_caption_belong_to_it():
    rest = '<graphic xlink:href="g"/><p><bold>A.</bold> Control.</p><permissions><license><graphic xlink:href="cc"/>'
    (parsed,) = parse_figures(article(figure("<p>Cells.</p>", rest=f"{rest}</license></permissions>")))
    assert parsed.caption == "Cells. A. Control."
    assert [graphic.hrefs for graphic in parsed.graphics] == [("g",)]


def test_a_label_is_text_or_none():
    body = "<fig><label><bold>Figure <italic>1</italic></bold>.</label></fig><fig><label> </label></fig><fig/>"
    assert [parsed.label for parsed in parse_figures(article(body))] == ["Figure 1.", None, None]


@pytest.mark.parametrize(
    "rest",
    [
        '<p><graphic xlink:href="g"/></p>',
        '<sec><p><alternatives><graphic xlink:href="g"/></alternatives></p></sec>',
        '<media mimetype="image" xlink:href="g"/>',
        '<media mimetype="video" xlink:href="film.mp4"/><media xlink:href="g.tif"/>',
        '<graphic/><graphic xlink:href=" "/><graphic xlink:href="g"/>',
    ],
)
def test_images_are_found_in_every_place_of_a_figure(rest):
    (parsed,) = parse_figures(article(figure("<p>One.</p>", rest=rest)))
    assert [graphic.hrefs[0].removesuffix(".tif") for graphic in parsed.graphics] == ["g"]


def test_images_directly_in_a_group_are_a_figure():
    group = (
        '<fig-group id="G"><label>Figure 9</label><caption><p>All.</p></caption>'
        f'<graphic xlink:href="g"><label>A</label></graphic>{figure("", rest="")}</fig-group>'
    )
    mention = '<p>In <xref ref-type="fig" rid="G">Figure 9</xref>.</p>'
    parsed, child = parse_figures(article(mention + group))
    assert (parsed.figure_id, parsed.label, parsed.caption) == ("G", "Figure 9", "All.")
    assert [(graphic.hrefs, graphic.panel) for graphic in parsed.graphics] == [(("g",), "A")]
    assert parsed.mentions == ("In Figure 9.",)
    assert (child.figure_id, child.label, child.caption, child.graphics) == ("F1", "Figure 1.", "All.", ())


def refer(rid: str, shown: str = "") -> str:
    return f'<xref ref-type="fig" rid="{rid}">{shown}</xref>'


FIVE = "".join(figure(f"<p>{number}</p>", figure_id=f"F{number}") for number in range(1, 6))


def mentions_of(body: str) -> list[tuple[str, ...]]:
    return [parsed.mentions for parsed in parse_figures(article(body + FIVE))]


@pytest.mark.parametrize("dash", ["–", "-", " — ", "−", "&#x2011;"])
def test_a_range_refers_to_the_figures_in_between(dash):
    mentions = mentions_of(f"<p>Figs {refer('F2', '2')}{dash}{refer('F4', '4')}.</p>")
    assert [bool(texts) for texts in mentions] == [False, True, True, True, False]


@pytest.mark.parametrize("joined", [", ", " and ", "–6, "])
def test_other_text_between_references_is_not_a_range(joined):
    mentions = mentions_of(f"<p>Figs {refer('F2', '2')}{joined}{refer('F4', '4')}.</p>")
    assert [bool(texts) for texts in mentions] == [False, True, False, True, False]


def test_a_mention_is_the_whole_paragraph_once():
    body = f"<p>{refer('F1', 'Fig. 1')}<list><list-item><p>{refer('F1', 'Fig. 1A')}</p></list-item></list> end.</p>"
    assert mentions_of(body)[0] == ("Fig. 1 Fig. 1A end.",)


def test_floating_elements_are_not_part_of_a_mention():
    box = f"<boxed-text><p>Box {refer('F2', '2')}.</p></boxed-text>"
    table = f"<table-wrap><table><tr><td>{refer('F3', '3')}</td></tr></table></table-wrap>"
    note = f"<fn><p>Note {refer('F4', '4')}.</p></fn>"
    paragraph = f"<p>Text {refer('F1', '1')}{box}{table} goes on{note}.</p>"
    assert mentions_of(paragraph) == [("Text 1 goes on.",), ("Box 2.",), (), ("Note 4.",), ()]


def test_paragraphs_of_figures_are_not_mentions():
    body = f"<fig><caption><p>Like {refer('F1')}</p></caption></fig><fig-group><caption><p>{refer('F1')}</p></caption>"
    assert mentions_of(f"{body}</fig-group><sec><title>{refer('F1', 'Fig. 1')}</title></sec>")[1:] == [()] * 5


@pytest.mark.parametrize(
    "place",
    [
        "</body><front><article-meta><abstract>{}</abstract></article-meta></front><body>",
        "</body><back><app-group><app>{}</app></app-group></back><body>",
        "</body><response><body>{}</body></response><body>",
        "<table-wrap><table-wrap-foot>{}</table-wrap-foot></table-wrap>",
        "<supplementary-material><caption>{}</caption></supplementary-material>",
    ],
)
def test_mentions_are_found_in_every_place(place):
    assert mentions_of(place.format(f"<p>See {refer('F1', 'Figure 1')}.</p>"))[0] == ("See Figure 1.",)


def test_ids_may_contain_spaces():
    body = f"<p>A {refer(' F 1 ', '1')}</p>" + figure("<p>a</p>", figure_id=" F 1 ")
    (parsed,) = parse_figures(article(body))
    assert (parsed.figure_id, parsed.mentions) == ("F 1", ("A 1",))


WHOLE = article(f"<p>Größe {refer('F1', 'Fig. 1')}.</p>" + figure("<p>α<sub>2</sub></p>")).decode()
PARSED = ("F1", "Figure 1.", "α2", (("g1",),), ("Größe Fig. 1.",))


@pytest.mark.parametrize(
    "xml",
    [
        WHOLE.encode("utf-16"),
        WHOLE.encode("utf-8-sig"),
        b'<?xml version="1.0" encoding="ISO-8859-1"?>' + WHOLE.encode("latin-1", "xmlcharrefreplace"),
        WHOLE.replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "").encode(),
        WHOLE.replace("xlink:", "l:").replace(":xlink", ":l").encode(),
        WHOLE.replace("1999/xlink", "TR/xlink/").encode(),
        WHOLE.replace("<article", '<article xmlns="http://specs.niso.org/schemas/jats"').encode(),
        re.sub(r"<(/?)(?=\w)", r"<\1j:", WHOLE).replace("<j:article", '<j:article xmlns:j="urn:j"').encode(),
        re.sub(r"<(/?)(?=\w)", r"<\1jats:", WHOLE).encode(),
        re.sub(r"<[^>]+>", lambda tag: tag[0].upper(), WHOLE).replace('"FIG"', '"fig"').encode(),
        f"<pmc-articleset>{WHOLE}</pmc-articleset>".encode(),
    ],
)
def test_encodings_namespaces_and_case_do_not_matter(xml):
    (parsed,) = parse_figures(xml)
    found = (parsed.figure_id, parsed.label, parsed.caption, tuple(g.hrefs for g in parsed.graphics), parsed.mentions)
    assert str(found).lower() == str(PARSED).lower()


def test_html_entities_are_converted_without_the_dtd():
    head = '<!DOCTYPE article PUBLIC "-//NLM//DTD JATS" "http://localhost:9/JATS.dtd">'
    (parsed,) = parse_figures(article(figure("<p>TGF-&beta;1 &plusmn; 5&nbsp;&unheardof;%</p>"), head=head))
    assert parsed.caption == "TGF-β1 ± 5 %"


def nested(start: str, content: str, levels: int = 240, rest: str = "") -> str:
    """Return `content` inside many elements. `start` ends with the first tag."""
    name = start.rpartition("<")[2].split()[0].rstrip(">")
    return start * levels + content + f"{rest}</{name}>" * levels


GRAPHIC = '<graphic xlink:href="g"/>'
FIGURE = "<fig><caption><p>a</p></caption></fig>"
TRANSLATIONS = '<fig xml:lang="en"><caption>a</caption></fig><fig xml:lang="es"/>'
HOSTILE = {
    "a document of 250 levels": nested("<sec>", "", 250),
    "scripts within scripts": figure(f"<p>{nested('1<sup>', '')}</p>"),
    "references within references": figure("<p>" + nested('<xref ref-type="bibr">', "1" * 10**6) + "</p>"),
    "fractions within fractions": figure(f"<p><math>{'<mfrac><mi>a</mi>' * 240}<mi/>{'</mfrac>' * 240}</math></p>"),
    "figures within figures": nested("<fig>", GRAPHIC * 1000),
    "groups within groups": nested("<fig-group>", "<fig/>" * 10_000),
    "a paragraph of 40,000 references": f"<p>{refer('F1', '1') * 40_000}</p>" + figure(""),
    "a range of 40,000 references": f"<p>{(refer('F1', '1') + '–') * 40_000}</p>" + figure(""),
    "deep references": nested("<p>", f"<b>{refer('F1', '1')}</b>" * 20_000, 200) + figure(""),
    "40,000 citations": figure(f"<p>{(cite('1') + ', ') * 40_000}</p>"),
    "citations in brackets": figure(f"<p>{'[(' * 40_000}{cite('1')}{')]' * 40_000}</p>"),
    "citations among words": figure(f"<p>{('(' + cite('1') + ') a, ') * 20_000}</p>"),
    "symbols and dots": figure("<p>" + "<inline-graphic/> . <fn/>" * 20_000 + "</p>"),
    "20,000 scripts": figure("<p>" + "1<sup>2</sup>" * 20_000 + "</p>"),
    "20,000 empty scripts": figure("<p>1" + "<sup/>" * 20_000 + "</p>"),
    "20,000 formulae": figure("<p>" + "<tex-math>$x$</tex-math>" * 20_000 + "</p>"),
    "20,000 beginnings": figure("<p><tex-math>" + "\\begin{document}" * 20_000 + "</tex-math></p>"),
    "20,000 figures": figure("<p>a</p>") * 20_000,
    "20,000 figures of a group": f"<fig-group><caption><p>{'a' * 10**5}</p></caption>{'<fig/>' * 20_000}</fig-group>",
    "20,000 figures in 2,000 ranges": "".join(f'<fig id="f{number}"/>' for number in range(20_000))
    + f"<p>{refer('f0')}–{refer('f19999')}</p>" * 2_000,
    "20,000 graphics": figure("", rest=GRAPHIC * 20_000),
    "figures in paragraphs in paragraphs": nested("<p>", "<fig/>" * 20_000),
    "captioned graphics of a deep table": "<table-wrap>"
    + nested("<p>", '<b><graphic xlink:href="g"><caption/></graphic></b>' * 20_000)
    + "</table-wrap>",
    "20,000 translations": nested("<p>", f"<fig-group>{TRANSLATIONS * 10_000}</fig-group>"),
    "20,000 captions": f"<fig>{'<caption><p>a</p></caption>' * 20_000}</fig>",
    "20,000 parts of one image": f"<fig-group>{FIGURE * 20_000}{GRAPHIC}</fig-group>",
    "8,000 images and captions": "<fig>"
    + "".join(f'<graphic xlink:href="{number}"/>' for number in range(8_000))
    + f"{FIGURE * 8_000}</fig>",
    "8,000 languages": "<fig-group>"
    + "".join(f'<fig xml:lang="l{n}"><caption>a</caption><graphic xlink:href="{n}"/></fig>' for n in range(8_000))
    + "</fig-group>",
    "20,000 captions of deep figures": nested("<fig>", FIGURE * 20_000),
    "20,000 captions in deep boxes": f"<fig>{nested('<boxed-text>', '<caption><p>a</p></caption>' * 20_000)}</fig>",
    "captions of nested groups": nested(
        "<fig-group>", f"<fig>{GRAPHIC}</fig>" * 20_000, 120, rest="<caption>a</caption>"
    ),
    "20,000 labels": figure("", rest="<label/>" * 20_000),
    "20,000 alternatives": figure("<p>" + "<alternatives><graphic/></alternatives>" * 20_000 + "</p>"),
    "a million spaces": figure(f"<p>10<sup>{' ' * 10**6}</sup>DOI{' ' * 10**6}x</p><p>doi{' ' * 10**6}x</p>"),
    "a million dashes": figure(f"<p>{cite('–' * 10**6 + 'x')}{cite('')}{'-' * 10**6}x</p>"),
    "a million digits": figure(f"<p>{cite('1' * 10**6)}{cite('1a' * 10**6 + 'ab')}</p><p>10.{'1' * 10**6}</p>"),
}


@pytest.mark.slow
@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_the_run_time_is_linear_in_the_size_of_an_article(body):
    """Each takes less than a second. A quadratic run time would be minutes."""
    started = time.process_time()
    parse_figures(article(body))
    assert time.process_time() - started < 10


def test_nesting_does_not_exceed_the_recursion_limit():
    """The parser is called from 300 frames, as in an executor."""

    def descend(frames: int) -> None:
        if frames:
            descend(frames - 1)
        else:
            for name in ("scripts within scripts", "fractions within fractions", "figures within figures"):
                assert parse_figures(article(HOSTILE[name]))

    descend(300)


def test_an_article_above_the_size_limit_is_refused(monkeypatch):
    monkeypatch.setattr("biomedclip.processing.pmc.jats.MAX_XML_BYTES", 100)
    with pytest.raises(JatsError, match="more than 100"):
        parse_figures(article(figure("<p>Here.</p>")))


RANGES = '<p><xref ref-type="fig" rid="F0"/>–<xref ref-type="fig" rid="F199"/></p>' * 1100
FIGURES = "".join(figure("<p>c</p>", figure_id=f"F{number}") for number in range(200))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("<b/>" * 3_000_000, "more than 3,000,000 tags"),
        ('<b a="" c="" d="" e=""/>' * 600_000, "more than 3,000,000 tags"),
        ("<fig/>" * 100_001, "more than 100,000 figures"),
        (FIGURES + RANGES, "refers to figures more than 200,000 times"),
    ],
    ids=["tags", "attributes", "figures", "mentions"],
)
def test_articles_that_need_too_much_memory_are_refused(body, message):
    with pytest.raises(JatsError, match=message):
        parse_figures(article(body))


def test_the_limits_allow_the_densest_articles():
    """The densest real article has one tag or attribute in 13 bytes."""
    assert MAX_XML_BYTES / 13 < MAX_MARKS


def spoken(text: str) -> str:
    """Return the letters and digits, which the rules for spaces, brackets and carets do not change."""
    return "".join(filter(str.isalnum, text))


def cut(element: etree._Element, *, keep_at: etree._Element | None = None) -> None:
    """Remove an element but not the text after it. Append it to `keep_at` if given."""
    parent, tail = element.getparent(), element.tail or ""
    before = element.getprevious()
    if before is None:
        parent.text = (parent.text or "") + " " + tail
    else:
        before.tail = (before.tail or "") + " " + tail
    element.tail = None
    parent.remove(element)
    if keep_at is not None:
        keep_at.append(element)


def strip_what_the_rules_drop(root: etree._Element) -> None:
    """Remove what the rules leave out, with XPath and independently of the parser."""
    for element in root.xpath(
        "//*[local-name()='annotation' or self::label[not(parent::fig)] or self::object-id or self::alt-text"
        " or self::tex-math[parent::alternatives/*[local-name()='math']]]"
    ):
        cut(element)
    citations = []
    for reference in root.xpath("//xref[@ref-type='bibr' or @ref-type='ref']"):
        shown = re.sub(r"[^\w]|_", " ", "".join(reference.itertext())).split()
        is_number = [re.fullmatch(r"(?!(1[6-9]|20)\d\d(?!\d))(\d+[a-z]?)+", word) for word in shown]
        if ":" not in "".join(reference.itertext()) and all(is_number):
            citations.append(reference)
    for reference in citations:
        following = reference.getnext()
        if following in citations and re.sub(r"[\W_]", "", reference.tail or "") == "and":
            reference.tail = None
    for reference in citations:
        cut(reference)
    for reference in root.xpath("//xref[@ref-type='fn' or @ref-type='table-fn'][string-length() < 3]"):
        cut(reference)
    for paragraph in root.xpath("//caption/p[starts-with(normalize-space(), 'DOI: http')]"):
        cut(paragraph)


def expected_figures(path: Path) -> list[dict[str, Any]]:
    """Return the figures of an article, found independently of the parser: images, letters and digits."""
    parser = etree.XMLParser(load_dtd=False, resolve_entities=False, no_network=True, remove_comments=True)
    root = etree.parse(str(path), parser).getroot()
    strip_what_the_rules_drop(root)
    floats = root.xpath("//fig | //p//table-wrap | //p//boxed-text | //p//fn | //p//supplementary-material")
    for element in reversed(floats):
        in_figure = element.tag != "fig" and element.xpath("boolean(ancestor::fig)")
        cut(element, keep_at=None if in_figure else root)
    figures = [element for element in floats if element.tag == "fig"]
    cited: list[list[str]] = [[] for _ in figures]
    ids = [figure.get("id") for figure in figures]
    for paragraph in root.xpath("//p[not(ancestor::p)][not(ancestor::fig)][.//xref[@ref-type='fig']]"):
        numbers = set()
        for reference in paragraph.xpath(".//xref[@ref-type='fig']"):
            numbers |= {ids.index(each) for each in reference.get("rid").split() if each in ids}
            following = reference.xpath("following-sibling::*[1][self::xref[@ref-type='fig']]/@rid")
            if following and following[0] in ids and (reference.tail or "").strip() in ("–", "-"):
                numbers |= set(range(ids.index(reference.get("rid").split()[-1]), ids.index(following[0])))
        for number in numbers:
            cited[number].append(spoken("".join(paragraph.itertext())))
    expected = []
    for figure, mentions in zip(figures, cited, strict=True):
        legend = figure.xpath("caption | p")
        expected.append(
            {
                "figure_id": figure.get("id"),
                "label": spoken("".join(figure.xpath("string(label)"))),
                "caption": spoken("".join(text for element in legend for text in element.itertext())),
                "hrefs": re.findall(r'<graphic\b[^>]*? xlink:href="([^"]+)"', etree.tostring(figure).decode()),
                "mentions": sorted(mentions),
            }
        )
    return expected


def real_articles(shared_data: Path) -> list[Path]:
    folders = ("pmc_mirror/PMC*/*.xml", "jats_xml/**/*.*xml", "jats_with_images/**/*.*xml")
    return sorted(path for folder in folders for path in shared_data.glob(folder))


def test_real_articles_lose_nothing(shared_data):
    """Compare every figure, label, image and mention, and every letter and digit that no rule leaves out."""
    counts: Counter[str] = Counter()
    for path in real_articles(shared_data):
        figures = parse_figures(path.read_bytes())
        expected = expected_figures(path)
        assert len(figures) == len(expected), path.name
        for ours, theirs in zip(figures, expected, strict=True):
            found = {
                "figure_id": ours.figure_id,
                "label": spoken(ours.label or ""),
                "caption": spoken(ours.caption),
                "hrefs": [href for graphic in ours.graphics for href in graphic.hrefs],
                "mentions": sorted(map(spoken, ours.mentions)),
            }
            assert found == theirs, (path.name, ours.figure_id)
            counts["figures"] += 1
            counts["graphics"] += len(ours.graphics)
            counts["mentions"] += len(ours.mentions)
            counts["characters of captions"] += len(found["caption"])
            for text in (ours.label or "", ours.caption, *ours.mentions):
                assert text == " ".join(text.split())
                assert not re.search(r"[\x00-\x1f\u00ad\u200b-\u200d\u2060\ufeff]", text)
        counts["articles"] += 1
    assert counts["articles"] == 269
    assert counts["figures"] == 1259
