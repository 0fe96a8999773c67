"""The rules of registrations, without any framework."""

__all__ = ["canonical_email"]


def canonical_email(email: str) -> str:
    """Return the one spelling of a mailbox, so that nobody registers twice: `Ada@Example.org` is `ada@example.org`.

    The part before the @ may in theory depend on case; no mail provider of today makes use of it.
    """
    return email.strip().casefold()
