"""Figures out of JATS. Each case that the paper's own pipeline gets wrong is a test here."""

import pytest

from processing.pmc.jats import JatsError, parse_figures


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


def test_text_in_nested_markup_is_kept():
    assert (
        caption_of("<p>Growth of <italic>E. <bold>coli</bold></italic> at 37 °C.</p>") == "Growth of E. coli at 37 °C."
    )


def test_title_and_paragraphs_are_joined_by_single_spaces():
    assert caption_of("<title>A title.</title>\n  <p>First.</p><p>Second.</p>") == "A title. First. Second."


def test_list_items_are_not_glued_together():
    caption = "<p>Groups:<list><list-item><p>one</p></list-item><list-item><p>two</p></list-item></list></p>"
    assert caption_of(caption) == "Groups: one two"


def test_a_formula_in_two_renderings_comes_once():
    formula = (
        "<inline-formula><alternatives><tex-math>\\documentclass{a}\\begin{document}$x^2$\\end{document}</tex-math>"
        "<mml:math><mml:msup><mml:mi>x</mml:mi><mml:mn>2</mml:mn></mml:msup></mml:math></alternatives></inline-formula>"
    )
    assert caption_of(f"<p>Where {formula} grows.</p>") == "Where x2 grows."


def test_a_formula_in_tex_alone_loses_its_preamble():
    formula = "<tex-math>\\documentclass{a}\\usepackage{b}\\begin{document}$a+b$\\end{document}</tex-math>"
    assert caption_of(f"<p>Sum {formula} here</p>") == "Sum a+b here"


def test_a_fraction_keeps_its_bar():
    formula = "<mml:math><mml:mfrac><mml:mi>a</mml:mi><mml:mi>b</mml:mi></mml:mfrac></mml:math>"
    assert caption_of(f"<p>Ratio {formula}</p>") == "Ratio a/b"


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("10<sup>6</sup> cells", "10^6 cells"),
        ("10<sup>−3</sup> M", "10^−3 M"),
        ("H<sub>2</sub>O", "H2O"),
        ("Ca<sup>2+</sup>", "Ca2+"),
        ("the 1<sup>st</sup> day", "the 1st day"),
    ],
)
def test_scripts_are_readable(markup, text):
    assert caption_of(f"<p>{markup}</p>") == text


def test_bare_citation_numbers_and_their_brackets_are_dropped():
    caption = '<p>As before [<xref ref-type="bibr" rid="B1">12</xref>, <xref ref-type="bibr" rid="B2">13</xref>].</p>'
    assert caption_of(caption) == "As before."


def test_references_to_figures_and_named_citations_are_kept():
    caption = (
        '<p>See <xref ref-type="fig" rid="F2">Figure 2</xref> and '
        '<xref ref-type="bibr" rid="B1">Smith et al.</xref></p>'
    )
    assert caption_of(caption) == "See Figure 2 and Smith et al."


def test_a_figure_without_caption_does_not_inherit_its_neighbours():
    body = figure("<p>Mine.</p>") + '<fig id="F2"><graphic xlink:href="g2"/></fig>'
    first, second = parse_figures(article(body))
    assert first.caption == "Mine."
    assert second.caption == "" and second.label is None


def test_a_figure_without_caption_takes_that_of_its_group():
    body = (
        f'<fig-group><caption><p>Both.</p></caption><fig id="a"><graphic xlink:href="g"/></fig>{figure("<p>Own.</p>")}'
    )
    first, second = parse_figures(article(body + "</fig-group>"))
    assert (first.caption, second.caption) == ("Both.", "Own.")


def test_every_graphic_of_a_figure_is_kept_with_its_panel():
    rest = '<graphic xlink:href="a"><label>A</label></graphic><graphic xlink:href="b"><label>B</label></graphic>'
    (parsed,) = parse_figures(article(figure("<p>Two.</p>", rest=rest)))
    assert [(graphic.hrefs, graphic.panel) for graphic in parsed.graphics] == [(("a",), "A"), (("b",), "B")]


def test_alternatives_are_one_graphic_of_several_files():
    rest = '<alternatives><graphic xlink:href="a.tif"/><graphic xlink:href="a.jpg"/></alternatives>'
    (parsed,) = parse_figures(article(figure("<p>One.</p>", rest=rest)))
    assert [graphic.hrefs for graphic in parsed.graphics] == [("a.tif", "a.jpg")]


def test_the_href_is_taken_whatever_the_order_of_attributes():
    rest = '<graphic content-type="x" id="i1" position="float" xlink:href="right"/>'
    (parsed,) = parse_figures(article(figure("<p>One.</p>", rest=rest)))
    assert parsed.graphics[0].hrefs == ("right",)


def test_pictures_inside_the_caption_are_not_pictures_of_the_figure():
    (parsed,) = parse_figures(article(figure('<p>With <inline-graphic xlink:href="symbol"/> symbol.</p>')))
    assert parsed.caption == "With symbol."
    assert [graphic.hrefs for graphic in parsed.graphics] == [("g1",)]


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
def test_figures_are_found_wherever_they_stand(wrap):
    (parsed,) = parse_figures(article(wrap.format(figure("<p>Here.</p>"))))
    assert parsed.caption == "Here."


def test_mentions_are_the_paragraphs_that_cite_the_figure_in_their_order():
    body = (
        '<p>First, <xref ref-type="fig" rid="F1">Fig. 1</xref> shows.</p><p>Nothing.</p>'
        '<p>Both (<xref ref-type="fig" rid="F1 F2">Figs 1, 2</xref>).</p>'
    )
    first, second = parse_figures(article(body + figure("<p>a</p>") + figure("<p>b</p>", figure_id="F2")))
    assert first.mentions == ("First, Fig. 1 shows.", "Both (Figs 1, 2).")
    assert second.mentions == ("Both (Figs 1, 2).",)


def test_figures_that_share_an_id_or_have_none_get_distinct_ones():
    body = figure("<p>a</p>") + figure("<p>b</p>") + '<fig><caption><p>c</p></caption><graphic xlink:href="g"/></fig>'
    assert [parsed.figure_id for parsed in parse_figures(article(body))] == ["F1", "F1-2", "fig-3"]


def test_a_default_namespace_changes_nothing():
    xml = article(figure("<p>Here.</p>")).replace(b"<article ", b'<article xmlns="https://jats.nlm.nih.gov/x" ')
    assert parse_figures(xml)[0].caption == "Here."


def test_an_entity_bomb_is_refused():
    bomb = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    with pytest.raises(JatsError, match="amplification"):
        parse_figures(article(figure("<p>Boom &e11;</p>"), head=f'<!DOCTYPE article [<!ENTITY e0 "boom">{bomb}]>'))


def test_entities_are_not_expanded_and_no_file_is_read():
    head = '<!DOCTYPE article SYSTEM "JATS.dtd" [<!ENTITY one "expanded"><!ENTITY file SYSTEM "file:///etc/passwd">]>'
    (parsed,) = parse_figures(article(figure("<p>Safe &one;&file;&#x3B1;</p>"), head=head))
    assert parsed.caption == "Safe α"


@pytest.mark.parametrize("xml", [b"", b"no xml", b"<article><body><fig>", b"<html/>", b"\x00\x01"])
def test_what_is_no_article_is_a_clear_error(xml):
    with pytest.raises(JatsError, match="XML"):
        parse_figures(xml)


def test_deep_nesting_is_an_error_and_not_a_crash():
    with pytest.raises(JatsError):
        parse_figures(article("<p>" * 100_000))


def test_real_articles_lose_no_caption_text(shared_data):
    """Every word of a real caption that is not a number of a citation or inside a formula stands in ours."""
    import re

    from lxml import etree

    checked = 0
    for path in sorted(shared_data.glob("pmc_mirror/PMC*/*.xml")):
        root = etree.parse(str(path), etree.XMLParser(load_dtd=False, resolve_entities=False, no_network=True))
        elements = list(root.iter("fig"))
        figures = parse_figures(path.read_bytes())
        assert len(figures) == len(elements)
        for element, parsed in zip(elements, figures, strict=True):
            caption = element.find("caption")
            if caption is None:
                continue
            for formula in list(caption.iter("{*}inline-formula", "{*}disp-formula")):
                formula.clear()
            expected = re.sub(r"[^a-z]", "", "".join(caption.itertext()).lower())
            found = re.sub(r"[^a-z]", "", parsed.caption.lower())
            if not caption.findall(".//inline-formula"):
                assert found == expected, (path.name, parsed.figure_id)
                checked += 1
    assert checked > 500
