"""The operator page: what the line sees and judges, in a browser on the machine or beside it."""

from rdedge.page.operator_page import OperatorPage

__all__ = ["OperatorPage"]
