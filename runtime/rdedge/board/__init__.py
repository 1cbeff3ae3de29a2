"""What a Jetson says and lets be set of its power modes, clocks, fan and heat; files are read below a root folder."""
