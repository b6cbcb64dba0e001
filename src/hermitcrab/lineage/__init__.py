"""The signed record: statements, signatures, verification, licenses, model card, bill of materials."""

from hermitcrab.lineage.keys import Key, default_key, keygen
from hermitcrab.lineage.sign import sign_package
from hermitcrab.lineage.statements import statement
from hermitcrab.lineage.verify import Verification, verify

__all__ = ["Key", "Verification", "default_key", "keygen", "sign_package", "statement", "verify"]
