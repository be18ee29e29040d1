"""``python -m audit_service.cli``: the same as ``bento-audit``."""

from audit_service.cli.group import main

if __name__ == "__main__":
    main()
