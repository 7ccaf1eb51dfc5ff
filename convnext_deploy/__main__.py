"""`python -m convnext_deploy` is `convnext-deploy`."""

from convnext_deploy.cli import main

if __name__ == "__main__":
    main()
