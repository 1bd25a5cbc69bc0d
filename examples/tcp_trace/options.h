/* What the user has requested, on the command line and in the environment. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <stdbool.h>

#include "text.h"

struct options {
    char *destinations;   /* addresses and prefixes, comma-separated and checked; NULL: any */
    char *ports;          /* ports and ranges, in the same form */
    const char *log_file; /* NULL: standard output */
    char *slack_url;      /* NULL: no alerts */
    const char *slack_ca_file;
    unsigned log_rate; /* lines a second; 0: no limit */
    bool json;
    bool ignore_given_up;
};

/* Ends the program if asked to (--help, --version), and with status 2 if the arguments are invalid. */
struct options options_read(int argc, char **argv);

/* The filter for tcpevent_options, to be freed; NULL for all connections. */
char *options_filter(const struct options *options);

void options_free(struct options *options);

#endif
