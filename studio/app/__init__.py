"""The app: a page that submits jobs, shows what becomes of them and never owns one."""
