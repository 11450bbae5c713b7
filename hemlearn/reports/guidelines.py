"""The items of CLAIM 2024 and TRIPOD+AI in our words: what of each a run answers, and what only the author can.

Sources: Tejani et al. 2024, Radiol. Artif. Intell. 6:e240300 (CLAIM 2024, 44 items); Collins et al. 2024, BMJ
385:e078378 (TRIPOD+AI, 27 items in 52 parts).
"""

from __future__ import annotations

from typing import NamedTuple


class Item(NamedTuple):
    """One item of a guideline."""

    number: str
    asks: str  # what it asks, in our words
    facts: tuple[str, ...] = ()  # names of the facts that answer it
    author: str = ""  # what only the author can add


CLAIM = (
    Item("1", "title that names the technique", author="title"),
    Item("2", "structured abstract", author="abstract"),
    Item("3", "background, intended use, clinical role", author="background and intended use"),
    Item("4", "aims and hypotheses", author="aims and hypotheses"),
    Item("5", "prospective or retrospective", author="whether the study was planned before the images were taken"),
    Item("6", "goal of the study", author="goal: a new model, feasibility, non-inferiority ..."),
    Item("7", "sources of the data", ("data",), "origin, licence and address of the data"),
    Item("8", "who was eligible", author="inclusion and exclusion criteria"),
    Item("9", "preprocessing", ("preprocessing",)),
    Item("10", "which part of the data was used", ("subset",)),
    Item("11", "de-identification", author="how the data were de-identified before they were given out"),
    Item("12", "missing data", ("missing",)),
    Item("13", "acquisition of the images", ("acquisition",), "scanners, protocols, resolution"),
    Item("14", "definition of the reference standard", ("labels",), "what makes a case positive, and who said so"),
    Item("15", "why this reference standard", author="rationale of the reference standard"),
    Item("16", "annotators", author="source, number and qualification of the annotators"),
    Item("17", "annotation procedure", author="tools and instructions of the annotation"),
    Item("18", "variability of the annotators", author="agreement between and within annotators"),
    Item("19", "how cases were assigned to parts", ("split",)),
    Item("20", "at which level the parts are disjoint", ("disjoint",)),
    Item("21", "size of the test set", ("tested",), "how that size was chosen"),
    Item("22", "the model, with its inputs and outputs", ("model", "output")),
    Item("23", "software and versions", ("software",)),
    Item("24", "initial weights", ("weights",)),
    Item("25", "training", ("training", "augmentation", "hardware")),
    Item("26", "how the final model was chosen", ("selection",)),
    Item("27", "ensembles", ("ensemble",)),
    Item("28", "figures of performance", ("metrics",)),
    Item("29", "uncertainty and tests", ("intervals", "tests")),
    Item("30", "robustness", ("robustness",)),
    Item("31", "explanations", author="maps or attributions, if any (hemlearn explain check=true)"),
    Item("32", "testing on internal data", ("internal",)),
    Item("33", "testing on external data", ("external",)),
    Item("34", "trial registration", author="registration, if it is a trial"),
    Item("35", "patients included and left out", ("flow",), "patients who were not in the data set from the start"),
    Item(
        "36", "demographic and clinical characteristics of each part", ("characteristics",), "of the training part, too"
    ),
    Item("37", "performance on each part and subgroup", ("results",), "subgroups"),
    Item("38", "estimates with 95 % intervals", ("results", "imbalance")),
    Item("39", "errors", ("failures",), "what the errors have in common, with pictures"),
    Item("40", "limitations", ("limits",), "limitations beyond these"),
    Item("41", "implications for practice", author="implications"),
    Item("42", "full protocol", author="where the protocol is found"),
    Item("43", "availability of software, model and data", ("code",), "where code, weights and data are found"),
    Item("44", "funding", author="sources of funding and their role"),
)
TRIPOD = (
    Item("1", "title", author="title: development or evaluation, population, outcome"),
    Item("2", "abstract", author="abstract"),
    Item("3a", "healthcare context and rationale", author="context, rationale, existing models"),
    Item("3b", "target population and intended use", author="population, place in the pathway, users"),
    Item("3c", "known health inequalities", author="inequalities between groups"),
    Item("4", "objectives", author="objectives"),
    Item("5a", "sources of the data", ("data",), "why these data, and whom they represent"),
    Item("5b", "dates", author="first and last date of accrual"),
    Item("6a", "setting", author="setting, number and place of the centres"),
    Item("6b", "eligibility", author="eligibility criteria"),
    Item("6c", "treatments", author="treatments, if they matter"),
    Item("7", "preparation and checking of the data", ("preprocessing", "quality")),
    Item("8a", "outcome", ("labels",), "definition, time and rationale of the outcome"),
    Item("8b", "who assessed the outcome", author="qualification of the assessors"),
    Item("8c", "blinding of the outcome", author="what the assessors knew"),
    Item("9a", "choice of predictors", ("input",)),
    Item("9b", "definition of predictors", ("input", "acquisition"), "when the images were taken"),
    Item("9c", "who assessed the predictors", author="not applicable where the image is the only predictor"),
    Item("10", "sample size", ("tested",), "how that size was chosen, and whether it suffices (hemlearn plan)"),
    Item("11", "missing data", ("missing", "left_out")),
    Item("12a", "how the data were used", ("split", "disjoint")),
    Item("12b", "handling of predictors", ("preprocessing", "augmentation")),
    Item("12c", "model, building steps, internal validation", ("model", "training", "selection", "internal")),
    Item("12d", "differences between clusters", author="centres or scanners, if they are known"),
    Item("12e", "measures of performance, comparison of models", ("metrics", "intervals", "tests")),
    Item("12f", "updating after the evaluation", ("updating",)),
    Item("12g", "how predictions were calculated", ("output", "ensemble", "software")),
    Item("13", "class imbalance", ("imbalance",)),
    Item("14", "fairness", author="what was done for fairness, and why"),
    Item("15", "output and thresholds", ("output",)),
    Item("16", "development against evaluation data", ("internal", "external"), "differences in setting and criteria"),
    Item("17", "ethical approval", author="committee, consent or waiver"),
    Item("18a", "funding", author="sources of funding and their role"),
    Item("18b", "conflicts of interest", author="of every author"),
    Item("18c", "protocol", author="where it is found, or that there was none"),
    Item("18d", "registration", author="register and number, or that there was none"),
    Item("18e", "sharing of data", author="where and on what terms"),
    Item("18f", "sharing of code", ("code",), "where and on what terms"),
    Item("19", "involvement of patients and public", author="involvement, or that there was none"),
    Item("20a", "flow of participants", ("flow",)),
    Item("20b", "characteristics of participants", ("characteristics",), "dates, treatments, sources; training part"),
    Item("20c", "evaluation beside development data", author="distribution of predictors and outcome in both"),
    Item("21", "participants and outcomes in each analysis", ("flow", "tested")),
    Item("22", "the full model", ("code", "weights")),
    Item("23a", "performance with intervals", ("results",), "subgroups"),
    Item("23b", "performance across clusters", author="centres or scanners, if they are known"),
    Item("24", "results of updating", ("updating",)),
    Item("25", "interpretation", author="interpretation, with fairness"),
    Item("26", "limitations", ("limits",), "limitations beyond these"),
    Item("27a", "poor or missing input in use", author="what happens with poor or missing images"),
    Item("27b", "skills that use needs", author="what users do, and what they must know"),
    Item("27c", "next steps", author="further research"),
)
