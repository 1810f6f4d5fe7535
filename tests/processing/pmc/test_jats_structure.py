"""Captions, images and mentions that the XML of an article puts at different levels or names in unusual ways."""

import pytest

from biomedclip.processing.pmc.jats import JatsError, parse_figures


NAMESPACES = 'xmlns:xlink="http://www.w3.org/1999/xlink"'


def article(body: str, attributes: str = "") -> bytes:
    return f"<article {NAMESPACES} {attributes}><body>{body}</body></article>".encode()


def graphic(name: str, content: str = "", attributes: str = "") -> str:
    return f'<graphic {attributes} xlink:href="{name}">{content}</graphic>'


def caption(text: str, attributes: str = "") -> str:
    return f"<caption {attributes}><p>{text}</p></caption>"


def captions_by_file(xml: bytes) -> dict[str, str]:
    """Return the caption of each image file. Each file belongs to one figure."""
    pairs = [
        (href, figure.caption) for figure in parse_figures(xml) for graphic in figure.graphics for href in graphic.hrefs
    ]
    assert len(dict(pairs)) == len(pairs), "an image belongs to two figures"
    return dict(pairs)


def mentions_by_file(xml: bytes) -> dict[str, tuple[str, ...]]:
    return {figure.graphics[0].hrefs[0]: figure.mentions for figure in parse_figures(xml) if figure.graphics}


@pytest.mark.parametrize(
    "figure",
    [
        "<fig id='F1'>{caption}<fig id='F1a'><label>A</label>{a}</fig><fig id='F1b'><label>B</label>{b}</fig></fig>",
        "<fig>{caption}<p><fig>{a}</fig></p><p><fig>{b}</fig></p></fig>",
        "<fig>{caption}<fig-group><fig>{a}</fig><fig>{b}</fig></fig-group></fig>",
        "<fig-group>{caption}<fig-group><fig>{a}</fig></fig-group><fig>{b}</fig></fig-group>",
        "<fig-group>{caption}<fig><fig>{a}</fig></fig><fig>{b}</fig></fig-group>",
        "<fig-group>{caption}<p><fig>{a}</fig></p>{b}</fig-group>",
        "<fig>{caption}{a}<fig>{b}</fig></fig>",
        "<fig>{caption}<p>{a}</p><list><list-item><p>{b}</p></list-item></list></fig>",
        "<fig><caption><p>Two views of the chest.{a}</p>{b}</caption></fig>",
        "<fig-group>{a}{b}<fig>{caption}</fig></fig-group>",
        "<fig>{a}{b}<fig>{caption}</fig></fig>",
        "<supplementary-material>{caption}<fig>{a}</fig><fig>{b}</fig></supplementary-material>",
        "<fig><graphic xlink:href='a'>{caption}</graphic>{b}</fig>",
        "<fig>{a}<media mimetype='image' xlink:href='b'>{caption}</media></fig>",
        "<fig><alternatives><graphic xlink:href='a'>{caption}</graphic><graphic xlink:href='b'/></alternatives></fig>",
        "<fig><graphic xlink:href='a'>{caption}</graphic><graphic xlink:href='b'>{caption}</graphic></fig>",
        "<fig><boxed-text>{caption}{a}</boxed-text>{b}</fig>",
        "<fig>{a}<boxed-text>{caption}</boxed-text><boxed-text><p>{b}</p></boxed-text></fig>",
        "<fig>{a}{b}<disp-quote><disp-quote>{caption}</disp-quote></disp-quote></fig>",
        "<fig>{a}{b}<media mimetype='video' xlink:href='v.mp4'>{caption}</media></fig>",
        "<fig><media mimetype='video' xlink:href='v.mp4'>{caption}{a}</media>{b}</fig>",
        "<fig>{a}{b}<fig><fig>{caption}</fig></fig></fig>",
        "<fig-group>{a}{b}<fig-group><p><fig>{caption}</fig></p></fig-group></fig-group>",
        "<fig>{caption}<fig><fig>{a}</fig><fig-group><fig>{b}</fig></fig-group></fig></fig>",
    ],
)
def test_captions_and_images_are_matched_across_levels(figure):
    figure = figure.format(caption=caption("Two views of the chest."), a=graphic("a"), b=graphic("b"))
    assert captions_by_file(article(figure)) == dict.fromkeys(["a", "b"], "Two views of the chest.")


def test_an_outer_figure_that_only_holds_figures_is_not_a_figure():
    body = f"<fig id='F1'>{caption('Both.')}<fig id='F1a'><label>A</label>{graphic('a')}</fig></fig>"
    (figure,) = parse_figures(article(body))
    assert (figure.figure_id, figure.label, figure.caption) == ("F1a", "A", "Both.")


@pytest.mark.parametrize("outer", ["fig", "fig-group"])
@pytest.mark.parametrize("image", ["", graphic("c")])
def test_a_nested_figure_keeps_its_own_caption(outer, image):
    figures = f"<fig>{caption('Inner.')}{graphic('a')}</fig><fig>{graphic('b')}</fig>{image}"
    expected = {"a": "Inner.", "b": "Outer."} | ({"c": "Outer."} if image else {})
    assert captions_by_file(article(f"<{outer}>{caption('Outer.')}{figures}</{outer}>")) == expected


def test_captions_of_parts_of_one_image_are_joined():
    parts = f"<fig><label>A</label>{caption('Left.')}</fig><fig><label>B</label>{caption('Right.')}</fig>"
    assert captions_by_file(article(f"<fig-group>{graphic('whole')}{parts}</fig-group>")) == {"whole": "Left. Right."}


@pytest.mark.parametrize(
    "body",
    [
        "<fig>{caption}{a}</fig><fig>{b}</fig>",
        "<fig>{caption}<graphic xlink:href='a'/></fig><fig-group><fig>{b}</fig></fig-group>",
        "<fig-group><fig>{caption}{a}</fig><fig>{b}</fig></fig-group>",
        "<boxed-text>{caption}<fig>{b}</fig></boxed-text><fig>{caption}{a}</fig>",
        "<fig>{caption}{a}<table-wrap><fig>{b}</fig></table-wrap></fig>",
        "<fig><caption><p>Mine.</p><fig>{b}</fig></caption>{a}</fig>",
        "<fig>{caption}{a}</fig><p>{b}</p><fig>{b}</fig>",
        "<fig>{caption}{a}</fig><fig>{b}<table-wrap>{caption}</table-wrap></fig>",
        "<fig>{caption}{a}</fig><fig>{b}<supplementary-material>{caption}</supplementary-material></fig>",
    ],
)
def test_a_figure_never_takes_the_caption_of_a_neighbor(body):
    body = body.format(caption=caption("Mine."), a=graphic("a"), b=graphic("b"))
    assert captions_by_file(article(body)) == {"a": "Mine.", "b": ""}


def test_a_symbol_in_the_caption_is_not_an_image_of_a_figure_that_has_another():
    figure = f"<fig><caption><p>Cells {graphic('symbol')} marked.</p></caption>{graphic('a')}</fig>"
    assert captions_by_file(article(figure)) == {"a": "Cells marked."}


def test_a_captioned_graphic_outside_figures_is_a_figure():
    alone = graphic("a", f"<label>Figure 1</label>{caption('Alone.')}", attributes="id='g1'")
    (figure,) = parse_figures(article(f"<p>Text {alone} goes on.</p>"))
    assert (figure.figure_id, figure.label, figure.caption) == ("g1", "Figure 1", "Alone.")
    assert [(each.hrefs, each.panel) for each in figure.graphics] == [(("a",), None)]


@pytest.mark.parametrize(
    "body",
    [
        "<p>Text {a}</p>",
        "<table-wrap><graphic xlink:href='t'>{caption}</graphic></table-wrap>",
        "<disp-formula><graphic xlink:href='f'>{caption}</graphic></disp-formula>",
        "<supplementary-material><media xlink:href='s.tif'>{caption}</media></supplementary-material>",
        "<p><media xlink:href='s.docx'>{caption}</media></p>",
        "<p><graphic>{caption}</graphic></p>",
        "<p><graphic xlink:href='a'><caption><p>Click here for additional data file.</p></caption></graphic></p>",
        "<p><media mimetype='image' xlink:href='a'><caption/></media></p>",
    ],
)
def test_other_graphics_outside_figures_are_not_figures(body):
    assert parse_figures(article(body.format(a=graphic("a"), caption=caption("No figure.")))) == []


CLICK = "Click here for additional data file."


@pytest.mark.parametrize(
    ("figure", "expected"),
    [
        (f"<fig>{graphic('a', caption(CLICK))}</fig>", ""),
        (f"<fig>{caption('Cells.')}<media xlink:href='a.tif'>{caption(CLICK)}</media></fig>", "Cells."),
        (f"<fig><caption><p>Cells.</p><p>{CLICK}</p></caption>{graphic('a')}</fig>", "Cells."),
        (f"<fig>{caption('Cells.')}{graphic('a')}<p>{CLICK}</p></fig>", "Cells."),
        (f"<fig><caption><title>{CLICK}</title></caption>{graphic('a', caption('Cells.'))}</fig>", "Cells."),
        (f"<fig-group>{caption('Cells.')}<fig>{caption(CLICK)}{graphic('a')}</fig></fig-group>", "Cells."),
        (f"<fig><caption><p>\n <bold>{CLICK}</bold>\n</p></caption>{graphic('a')}</fig>", ""),
        (f"<fig><caption><p>{CLICK[:-1]} (12K, tif)</p></caption>{graphic('a')}</fig>", ""),
        (f"<fig>{caption('Click here to view.')}{graphic('a')}</fig>", ""),
        *(
            (f"<fig>{caption(text)}{graphic('a')}</fig>", "")
            for text in (
                "Click here for additional data files.",
                "Click here for file",
                "Click here for supplemental data.",
                "Click here for the supplementary data file (PDF)",
                "Click here for supplementary material.",
                "Please click here to download.",
                "Additional data file.",
                f"{CLICK}{CLICK}",
                f"{CLICK}</p><p>{CLICK}",
            )
        ),
        (f"<fig>{caption(f'Cells. {CLICK}')}{graphic('a')}</fig>", "Cells."),
        (f"<fig>{caption(f'{CLICK[:-1]} (12K, tif). Cells.')}{graphic('a')}</fig>", "Cells."),
        (f"<fig>{graphic('a')}<media xlink:href='a.pdf'>{caption(CLICK)}</media></fig>", ""),
        (f"<fig>{caption('Click here for figures.')}{graphic('a')}</fig>", "Click here for figures."),
        (f"<fig>{caption('Additional data files of mice.')}{graphic('a')}</fig>", "Additional data files of mice."),
        (f"<fig>{caption('Click here rates of users.')}{graphic('a')}</fig>", "Click here rates of users."),
    ],
)
def test_the_placeholder_for_additional_files_is_not_a_caption(figure, expected):
    (parsed,) = parse_figures(article(figure))
    assert parsed.caption == expected


SPANISH = 'xml:lang="es"'
ENGLISH = 'xml:lang="en"'


@pytest.mark.parametrize(
    "group",
    [
        "<fig-group><fig {es}>{tórax}</fig><fig {en}>{chest}{a}</fig></fig-group>",
        "<fig-group><fig {es}>{tórax}{a}</fig><fig {en}>{chest}</fig></fig-group>",
        "<fig-group><fig {es}>{tórax}{a}</fig><fig {en}>{chest}{a}</fig></fig-group>",
        "<fig-group>{a}<fig {es}>{tórax}</fig><fig {en}>{chest}</fig></fig-group>",
        "<fig-group><caption {es}><p>Tórax.</p></caption><caption {en}><p>Chest.</p></caption>{a}</fig-group>",
        "<fig-group><caption {es}><p>Tórax.</p></caption><caption {en}><p>Chest.</p></caption><fig>{a}</fig>"
        "</fig-group>",
        "<fig><caption {es}><p>Tórax.</p></caption><caption {en}><p>Chest.</p></caption>{a}</fig>",
        "<fig-group><fig><caption {es}><p>Tórax.</p></caption></fig><fig><caption {en}><p>Chest.</p></caption>{a}</fig>"
        "</fig-group>",
        "<fig-group><fig-group {es}><fig>{tórax}{a}</fig></fig-group><fig-group {en}><fig>{chest}{a}</fig></fig-group>"
        "</fig-group>",
        "<fig-group {es}><fig {es}>{tórax}{a}</fig><fig {en}>{chest}{a}</fig></fig-group>",
        "<fig-group><p><fig {es}>{tórax}</fig></p><p><fig {en}>{chest}{a}</fig></p></fig-group>",
        "<fig><fig {es}>{tórax}{a}</fig><fig {en}>{chest}{a}</fig></fig>",
        "<fig>{a}<fig {es}>{tórax}</fig><fig {en}>{chest}</fig></fig>",
        "<fig><caption><p {es}>Tórax.</p><p {en}>Chest.</p></caption>{a}</fig>",
        "<fig><caption><title {es}>Tórax.</title><title {en}>Chest.</title></caption>{a}</fig>",
        "<fig><alternatives><graphic xlink:href='a' {es}>{tórax}</graphic><graphic {en} xlink:href='a'>{chest}"
        "</graphic></alternatives></fig>",
        "<fig><graphic xlink:href='a'><caption {es}><p>Tórax.</p></caption><caption {en}><p>Chest.</p></caption>"
        "</graphic></fig>",
        "<fig>{a}<boxed-text {es}>{tórax}</boxed-text><boxed-text {en}>{chest}</boxed-text></fig>",
    ],
)
@pytest.mark.parametrize(
    ("language", "expected"),
    [
        ("en", "Chest."),
        ("en-US", "Chest."),
        ("en_US", "Chest."),
        ("eng", "Chest."),
        ("es", "Tórax."),
        ("spa", "Tórax."),
    ],
)
def test_the_caption_in_the_language_of_the_article_is_used(group, language, expected):
    texts = {"tórax": caption("Tórax."), "chest": caption("Chest."), "a": graphic("a")}
    body = group.format(es=SPANISH, en=ENGLISH, **texts)
    assert captions_by_file(article(body, f'xml:lang="{language}"')) == {"a": expected}


@pytest.mark.parametrize(
    "figures",
    [
        "<fig {es}>{tórax}</fig><fig>{chest}{a}</fig>",
        "<fig {es}>{a}</fig><fig {en}>{chest}</fig>",
        "<fig {en}>{a}</fig><fig {es}>{chest}</fig>",
    ],
)
def test_a_figure_without_a_language_has_that_of_the_article_and_one_without_a_caption_does_not_count(figures):
    texts = {"tórax": caption("Tórax."), "chest": caption("Chest."), "a": graphic("a")}
    body = f"<fig-group>{figures.format(es=SPANISH, en=ENGLISH, **texts)}</fig-group>"
    assert captions_by_file(article(body, ENGLISH)) == {"a": "Chest."}


def test_the_first_caption_is_used_if_none_is_in_the_language_of_the_article():
    group = f"<fig-group><fig {SPANISH}>{caption('Tórax.')}</fig><fig {ENGLISH}>{caption('Chest.')}{graphic('a')}</fig>"
    figure = f"<fig>{caption('Tórax.')}{caption('Chest.', ENGLISH)}{graphic('a')}</fig>"
    for attributes in ("", 'xml:lang="fr"'):
        assert captions_by_file(article(f"{group}</fig-group>", attributes)) == {"a": "Tórax."}
        assert captions_by_file(article(figure, attributes)) == {"a": "Tórax."}


def test_a_translated_group_of_panels_keeps_each_panel_with_its_caption():
    figures = "".join(
        f"<fig {language}>{caption(text)}{graphic(name)}</fig>"
        for language, text, name in [
            (SPANISH, "Uno.", "1"),
            (SPANISH, "Dos.", "2"),
            (ENGLISH, "One.", "1"),
            (ENGLISH, "Two.", "2-en"),
        ]
    )
    xml = article(f"<fig-group>{figures}</fig-group>", ENGLISH)
    assert captions_by_file(xml) == {"1": "One.", "2": "Two.", "2-en": "Two."}


def test_groups_inside_a_group_that_state_no_language_are_not_translations_of_each_other():
    both = f"<fig-group><fig {SPANISH}>{caption('Uno.')}</fig><fig {ENGLISH}>{caption('One.')}{graphic('1')}</fig>"
    spanish = f"</fig-group><fig-group><fig {SPANISH}>{caption('Dos.')}{graphic('2')}</fig></fig-group>"
    assert captions_by_file(article(f"<fig-group>{both}{spanish}</fig-group>", ENGLISH)) == {"1": "One.", "2": "Dos."}


def test_what_states_no_language_stays_in_a_caption_of_two_languages():
    blocks = f"<title>1.</title><p {SPANISH}>Tórax.</p><p {ENGLISH}>Chest.</p>"
    figure = f"<fig><caption>{blocks}</caption>{graphic('a')}</fig>"
    assert captions_by_file(article(figure)) == {"a": "1. Tórax."}
    assert captions_by_file(article(figure, ENGLISH)) == {"a": "1. Chest."}


def test_the_caption_of_a_translated_article_is_in_its_own_language():
    figure = f"<fig><caption {SPANISH}><p>Tórax.</p></caption><caption {ENGLISH}><p>Chest.</p></caption>"
    translation = f"<sub-article {SPANISH}><body>{figure}{graphic('es')}</fig></body></sub-article>"
    xml = article(f"{figure}{graphic('en')}</fig></body>{translation}<body>", ENGLISH)
    assert captions_by_file(xml) == {"en": "Chest.", "es": "Tórax."}


def test_an_empty_caption_does_not_hide_one_with_text():
    assert captions_by_file(article(f"<fig><caption/>{caption('Here.')}{graphic('a')}</fig>")) == {"a": "Here."}


def refer(rid: str, attributes: str = 'ref-type="fig"', shown: str = "Fig") -> str:
    return f'<xref {attributes} rid="{rid}">{shown}</xref>'


@pytest.mark.parametrize(
    "attributes",
    [
        "",
        *(
            f'ref-type="{kind}"'
            for kind in ("scheme", "figure", "Fig", "FIG", "supplementary-material", "chart", "bibr", "table", "fn", "")
        ),
    ],
)
@pytest.mark.parametrize("shown", ["Fig 1", "1"])
@pytest.mark.parametrize("figure", ["<fig id='F1'>{}</fig>", "<fig-group id='F1'><fig>{}</fig></fig-group>"])
def test_the_target_of_a_reference_counts_and_not_its_type(attributes, shown, figure):
    body = f"<p>See {refer('F1', attributes, shown)} here.</p>{figure.format(caption('c') + graphic('a'))}"
    assert mentions_by_file(article(body)) == {"a": (f"See {shown} here.",)}


@pytest.mark.parametrize("rid", ["F1 F2", "F1,F2", "F1; F2", "#F1 #F2"])
def test_a_reference_may_name_several_figures(rid):
    figures = "".join(f"<fig id='F{n}'>{caption('c')}{graphic(str(n))}</fig>" for n in (1, 2, 3))
    found = mentions_by_file(article(f"<p>In {refer(rid)}.</p>{figures}"))
    assert found == {"1": ("In Fig.",), "2": ("In Fig.",), "3": ()}


def test_a_reference_to_something_else_is_not_a_mention():
    body = f"<p>See {refer('T1')} and {refer('sec1')}.</p><sec id='sec1'><fig id='F1'>{graphic('a')}</fig></sec>"
    assert mentions_by_file(article(body)) == {"a": ()}


@pytest.mark.parametrize(
    "figure",
    [
        "<fig-group id='X'>{caption}<fig id='a'>{a}</fig><fig id='b'>{b}</fig></fig-group>",
        "<fig-group id='X'><fig>{caption}{a}</fig><fig>{caption}{b}</fig></fig-group>",
        "<fig id='X'>{caption}<fig id='a'>{a}</fig><fig id='b'>{b}</fig></fig>",
        "<fig-group id='X'>{caption}<fig><fig>{a}</fig></fig><fig-group><fig>{b}</fig></fig-group></fig-group>",
        "<fig-group id='X'>{a}<fig id='b'>{caption}{b}</fig></fig-group>",
        "<supplementary-material id='X'><fig>{a}</fig><fig>{b}</fig></supplementary-material>",
    ],
)
def test_a_mention_of_a_group_is_one_of_each_figure_in_it(figure):
    figure = figure.format(caption=caption("c"), a=graphic("a"), b=graphic("b"))
    found = mentions_by_file(article(f"<p>In {refer('X')}.</p>{figure}<fig id='other'>{graphic('c')}</fig>"))
    assert found == {"a": ("In Fig.",), "b": ("In Fig.",), "c": ()}


def test_a_mention_of_one_panel_does_not_count_for_other_panels():
    group = f"<fig-group id='X'><fig id='a'>{graphic('a')}</fig><fig id='b'>{graphic('b')}</fig></fig-group>"
    assert mentions_by_file(article(f"<p>In {refer('b')}.</p>{group}")) == {"a": (), "b": ("In Fig.",)}


@pytest.mark.parametrize(
    "figure",
    [
        "<fig id='F1'><graphic id='X' xlink:href='a'/></fig>",
        "<fig><media id='X' mimetype='image' xlink:href='a'/></fig>",
        "<fig><alternatives id='X'><graphic xlink:href='a'/></alternatives></fig>",
        "<fig><alternatives><graphic xlink:href='a'/><graphic id='X' xlink:href='b'/></alternatives></fig>",
        "<fig-group><graphic id='X' xlink:href='a'/></fig-group>",
        "<fig><label id='X'>Figure 1</label><graphic xlink:href='a'/></fig>",
        "<fig id='F1'><caption id='X'><p>c</p></caption><graphic xlink:href='a'/></fig>",
        "<graphic id='X' xlink:href='a'><caption><p>c</p></caption></graphic>",
        "<fig-group><fig xml:lang='es' id='X'><caption><p>c</p></caption></fig><fig xml:lang='en'><caption><p>c</p>"
        "</caption><graphic xlink:href='a'/></fig></fig-group>",
        "<fig-group><graphic xlink:href='a'/><fig id='X'><caption><p>c</p></caption></fig></fig-group>",
        "<fig xml:id='X'><caption><p>c</p></caption><graphic xlink:href='a'/></fig>",
    ],
)
def test_a_reference_to_an_image_or_a_merged_figure_is_a_mention(figure):
    assert mentions_by_file(article(f"<p>In {refer('X')}.</p>{figure}", ENGLISH)) == {"a": ("In Fig.",)}


def test_a_figure_without_an_id_is_not_named_after_its_image():
    (figure,) = parse_figures(article("<fig><graphic id='g1' xlink:href='a'/></fig>"))
    assert figure.figure_id == "fig-1"


def test_a_range_passes_over_the_panels_of_groups():
    group = "<fig-group id='G{n}'><fig id='{n}a'>{a}</fig><fig id='{n}b'>{b}</fig></fig-group>"
    groups = "".join(group.format(n=n, a=graphic(f"{n}a"), b=graphic(f"{n}b")) for n in (1, 2, 3, 4))
    found = mentions_by_file(article(f"<p>{refer('G1', shown='1')}–{refer('G3', '', '3')}</p>{groups}"))
    cited = ("1–3",)
    assert found == {f"{n}{panel}": cited if n < 4 else () for n in (1, 2, 3, 4) for panel in "ab"}


def test_many_references_to_a_large_group_are_refused():
    figures = "<fig>" + graphic("a") + "</fig>"
    body = f"<p>{refer('X') * 300}</p><fig-group id='X'>{figures * 1_000}</fig-group>"
    with pytest.raises(JatsError, match="refers to figures more than"):
        parse_figures(article(body))
