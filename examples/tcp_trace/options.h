/* What the user has asked for, on the command line and in the environment. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <stdbool.h>

#include "text.h"

struct options {
    char *destinations;   /* addresses and prefixes with commas between them, all of them checked; NULL: any */
    char *ports;          /* ports and ranges, likewise */
    const char *log_file; /* NULL: standard output */
    char *slack_url;      /* NULL: no alerts */
    const char *slack_ca_file;
    unsigned log_rate; /* lines a second; 0: no limit */
    bool json;
    bool ignore_given_up;
};

/* Ends the program where it is told so (--help, --version), and with status 2 where it is told nonsense. */
struct options options_read(int argc, char **argv);

/* The filter for tcpevent_options, to be freed; NULL where all connections are of interest. */
char *options_filter(const struct options *options);

void options_free(struct options *options);

#endif
