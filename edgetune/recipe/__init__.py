"""Recipes: frozen dataclasses read from TOML, one flat table a stage. `load_recipe` reads one and checks it at once."""

from edgetune.recipe.changes import AFTER, CHANGING_KEYS, value_after
from edgetune.recipe.check import problem_with
from edgetune.recipe.classification import CLASSIFIER_DEFAULTS, DECODER_KEYS, ClassifyTable
from edgetune.recipe.keys import check_value, number_kind, unknown_key
from edgetune.recipe.load import load_recipe, parse_recipe
from edgetune.recipe.recipe import Recipe
from edgetune.recipe.tables import (
    CALIBRATED,
    INT2_BLOCK_SIZES,
    TABLES,
    BudgetTable,
    DataTable,
    EvaluateTable,
    ExportTable,
    LoraTable,
    Method,
    ModelTable,
    TrainTable,
    TuneTable,
)
from edgetune.recipe.values import MOST, as_toml, check_table, parse_size

__all__ = [
    "AFTER",
    "CALIBRATED",
    "CHANGING_KEYS",
    "CLASSIFIER_DEFAULTS",
    "DECODER_KEYS",
    "INT2_BLOCK_SIZES",
    "MOST",
    "TABLES",
    "BudgetTable",
    "ClassifyTable",
    "DataTable",
    "EvaluateTable",
    "ExportTable",
    "LoraTable",
    "Method",
    "ModelTable",
    "Recipe",
    "TrainTable",
    "TuneTable",
    "as_toml",
    "check_table",
    "check_value",
    "load_recipe",
    "number_kind",
    "parse_recipe",
    "parse_size",
    "problem_with",
    "unknown_key",
    "value_after",
]
