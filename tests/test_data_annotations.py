"""Logic forms in words: the rules as a table, and every literal of the real problems accounted for."""

from __future__ import annotations

import json
import re

import pytest

from perception_r1_jax.data.annotations import (
    DEGENERATE,
    EMPTY,
    NO_RULE,
    UNLETTERED,
    UNREADABLE,
    LeftOutLiteral,
    render_annotations,
    render_literal,
)


@pytest.mark.parametrize(
    ("literal", "sentence"),
    [
        ("PointLiesOnLine(P, Line(N, M))", "Point P lies on line MN."),
        ("PointLiesOnCircle(M, Circle(K, radius_7_0))", "Point M lies on circle K."),
        ("Parallel(Line(E,C), Line(A,B))", "AB is parallel to CE."),
        ("Perpendicular(Line(P, K), Line(M, P))", "KP is perpendicular to MP at P."),
        ("Perpendicular(Line(A,E), Line(C,B))", "AE is perpendicular to BC."),
        ("Equals(LengthOf(Line(J, K)), 10)", "The length of JK is $10$."),
        ("Equals(LengthOf(Line(F, B)), x) ", "The length of BF is $x$."),
        (r"Equals(LengthOf(Line(A, B)), \frac{2}{3}x-4)", r"The length of AB is $\frac{2}{3}x-4$."),
        (r"Equals(LengthOf(Line(A, B)), 10\sqrt{3})", r"The length of AB is $10\sqrt{3}$."),
        ("Equals(LengthOf(Line(C, B)), LengthOf(a))", "The length of BC is $a$."),
        ("Equals(LengthOf(Line(W, Y)), LengthOf(Line(Y, X)))", "The length of WY equals the length of XY."),
        ("Equals(Line(B, E), Line(A, E))", "The length of AE equals the length of BE."),
        ("Equals(LengthOf(Arc(R,S,T)), 7.94)", "The length of arc RST is $7.94$."),
        ("Equals(LengthOf(HeightOf(Triangle(D,E,F))), 21)", "The height of triangle DEF is $21$."),
        ("Equals(AreaOf(Rectangle(A,B,C,D)), 32)", "The area of rectangle ABCD is $32$."),
        ("Equals(MeasureOf(Angle(C, B, A)), 58)", r"The measure of angle ABC is $58^\circ$."),
        ("Equals(MeasureOf(Angle(A, B, C)), 2x+5)", r"The measure of angle ABC is $(2x+5)^\circ$."),
        ("Equals(MeasureOf(Arc(F, C)), x^2+2x)", r"The measure of arc CF is $(x^2+2x)^\circ$."),
        (
            "Equals(MeasureOf(Angle(T, R, S)), MeasureOf(Angle(Q, R, T)))",
            "The measure of angle QRT equals the measure of angle SRT.",
        ),
        ("Equals(MeasureOf(Angle(A, B, C)), MeasureOf(angle 12))", "Angle ABC is marked as angle 12."),
        ("Equals(MeasureOf(Angle(A, J, C)), MeasureOf(Angle(5)))", "Angle AJC is marked as angle 5."),
    ],
)
def test_rules(literal, sentence):
    assert render_literal(literal) == sentence


@pytest.mark.parametrize(
    ("literal", "reason"),
    [
        ("", EMPTY),
        ("  ", EMPTY),
        ("A", UNREADABLE),
        ("PointLiesOnLine(Y, Line(Z, I)) K))", UNREADABLE),
        ("PointLiesOnLine(Y, Line(Z, I)", UNREADABLE),
        ("PointLiesOnLine(Y)", UNREADABLE),
        ("Equals(LengthOf(Line(L, G)), 66--y)", UNREADABLE),
        ("Equals(LengthOf(Line(A, C)), 0n8)", UNREADABLE),
        ("Equals(MeasureOf(Angle(Q, U, v)), 26)", UNREADABLE),
        ("Equals(MeasureOf(Angle(G, F, C)), MeasureOf(angle 7x))", UNREADABLE),
        ("Equals(MeasureOf(Angle(X, Y, Z)), MeasureOf(A, E, F))", UNREADABLE),
        ("Equals(LengthOf(Line(E, E)), 13)", DEGENERATE),
        ("Equals(LengthOf(Line(R, B)), LengthOf(Line(B, R)))", DEGENERATE),
        ("PointLiesOnLine(A, Line(A, B))", DEGENERATE),
        ("Parallel(Line(A, B), Line(B, A))", DEGENERATE),
        ("PointLiesOnLine(point_26, Line(B, G))", UNLETTERED),
        ("Tangent(Line(A, B), Circle(O))", NO_RULE),
    ],
)
def test_reasons_for_leaving_out(literal, reason):
    with pytest.raises(LeftOutLiteral, match=f"^{reason}$"):
        render_literal(literal)


def test_a_fact_stated_twice_is_told_once():
    literals = ["Perpendicular(Line(A, B), Line(B, C))", "", "Perpendicular(Line(C, B), Line(B, A))"]
    rendered = render_annotations(literals)
    assert rendered.sentences == ("AB is perpendicular to BC at B.",)
    assert rendered.merged == (literals[2],)
    assert rendered.left_out == (("", EMPTY),)


def test_a_literal_nested_without_end_is_left_out():
    literal = "A(" * 3000 + ")" * 3000
    assert render_annotations([literal]).left_out == ((literal, UNREADABLE),)


def test_four_points_on_a_line_are_told_in_one_sentence():
    triples = ["PointLiesOnLine(B, Line(A, C))", "PointLiesOnLine(B, Line(A, D))", "PointLiesOnLine(C, Line(A, D))"]
    whole = render_annotations([*triples, "PointLiesOnLine(C, Line(B, D))"])
    assert whole.sentences == ("Points A, B, C and D lie on one line.",)
    assert len(whole.merged) == 3

    # B, C and D are not stated to be on one line: perhaps a literal is mistaken, so each stands for itself.
    assert len(render_annotations(triples).sentences) == 3


def test_every_literal_of_the_real_problems_is_accounted_for(shared_data):
    sentences = literals = left_out = 0
    for split in ("train", "val", "test"):
        for line in (shared_data / "geometry3k" / f"{split}.jsonl").open():
            row = json.loads(line)
            rendered = render_annotations(row["diagram_logic_form"])
            accounted = [literal for literal, _ in rendered.left_out] + list(rendered.merged)
            assert len(accounted) + len(rendered.sentences) == len(row["diagram_logic_form"])
            assert len(set(rendered.sentences)) == len(rendered.sentences) > 0
            for sentence in rendered.sentences:
                assert re.fullmatch(r"[A-Z][^_]*\.", sentence)
                assert sentence.count("$") in (0, 2)
                assert not re.search(r"[A-Z][a-z]+\(|Of\b|point_", sentence), sentence
                lettered = re.findall(r"\b[A-Z]+\b", re.sub(r"\$.*\$", "", sentence))
                assert set("".join(lettered)) <= set(row["point_instances"] + row["circle_instances"])
            sentences += len(rendered.sentences)
            literals += len(row["diagram_logic_form"])
            left_out += len(rendered.left_out)
    assert (literals, sentences, left_out) == (2790, 2132, 64)
