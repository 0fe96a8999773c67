"""What is true about registrations whatever carries them. Imports no framework."""

__all__ = ["canonical_email"]


def canonical_email(email: str) -> str:
    """One spelling per mailbox, so that nobody registers twice by accident: `Ada@Example.org` is `ada@example.org`.

    The part before the @ may in theory depend on case; no mail provider of today makes use of it.
    """
    return email.strip().casefold()
