#define _GNU_SOURCE
#include "alert.h"

#include <curl/curl.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "summary.h"
#include "text.h"

#if LIBCURL_VERSION_NUM < 0x075700
#error "libcurl 7.87 or later is needed"
#endif

#ifndef TCPEVENT_VERSION
#define TCPEVENT_VERSION "unknown"
#endif

enum {
    MESSAGE_PAUSE_MS = 1000, /* Slack's limit: a message a second */
    CONNECT_TIMEOUT_MS = 5000,
    TIMEOUT_MS = 10000,
    FIRST_RETRY_MS = 1000,
    LAST_RETRY_MS = 60000,
    LONGEST_RETRY_AFTER_S = 3600,
    LAST_ALERTS_PATIENCE_MS = 5000,
    LONGEST_ANSWER = 65536, /* bytes */
    HTTP_TOO_MANY_REQUESTS = 429,
};

struct alerts {
    struct log *log;
    const char *url;
    const char *ca_file;
    CURL *curl;
    struct curl_slist *headers;
    pthread_t thread;

    /* Shared with the main thread. */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct summary pending;
    bool stopping;
    int64_t deadline_ms; /* once stopping */

    /* The alert thread's own. */
    struct summary sending;
    struct told told;
    int64_t next_ms;     /* earliest time of the next message */
    bool wait_is_slacks; /* as Slack has asked */
    int64_t retry_ms;    /* the next wait, unless Slack asks for one */
    bool outage;
    int64_t outage_since_ms;
    uint64_t refused;
    size_t answered; /* bytes of the answer to the last message */
    char message[SUMMARY_MESSAGE_SIZE];
    char body[2 * SUMMARY_MESSAGE_SIZE];
};

/* ---- The message -------------------------------------------------------------------------------------------- */

/* {"text":"..."}. Slack reads <, > and & as markup, by which a process could notify a whole channel with its name.
 * Without mrkdwn, stars and backticks of a name stay as they are; without unfurl_links Slack does not fetch a name
 * that is a link. */
static void put_body(struct text *body, const char *message)
{
    char storage[2 * SUMMARY_MESSAGE_SIZE];
    struct text plain = TEXT_IN(storage);

    for (; *message != '\0'; message++) {
        if (*message == '&')
            put(&plain, "&amp;");
        else if (*message == '<')
            put(&plain, "&lt;");
        else if (*message == '>')
            put(&plain, "&gt;");
        else
            put_bytes(&plain, message, 1);
    }
    put(body, "{\"text\": ");
    put_json(body, plain.data, plain.length);
    put(body, ", \"mrkdwn\": false, \"unfurl_links\": false}");
}

static void put_host(struct text *text)
{
    char name[256] = "";

    if (gethostname(name, sizeof name - 1) != 0)
        strcpy(name, "unknown host");
    put_printable(text, name, sizeof name, "");
}

/* ---- Certificates ------------------------------------------------------------------------------------------- */

/* Appends a file and a newline, which the last line of a file may lack. Returns 0, or an errno. */
static int append_file(struct curl_blob *blob, const char *path)
{
    FILE *file = fopen(path, "re");
    size_t count = 1;
    int error = 0;

    if (file == NULL)
        return errno;
    while (error == 0 && count > 0) {
        char *grown = realloc(blob->data, blob->len + BUFSIZ + 1);

        if (grown == NULL) {
            error = ENOMEM;
            break;
        }
        blob->data = grown;
        count = fread(grown + blob->len, 1, BUFSIZ, file);
        blob->len += count;
        if (ferror(file))
            error = errno;
    }
    fclose(file);
    if (error == 0)
        ((char *)blob->data)[blob->len++] = '\n';
    return error;
}

/* Trusts the authorities in the file besides the system's. (CURLOPT_CAINFO alone would replace the system's.)
 * Returns 0, or an errno. */
static int add_authorities(CURL *curl, const char *ca_file)
{
    struct curl_blob blob = {.flags = CURL_BLOB_COPY};
    char *of_system = NULL;
    int error = append_file(&blob, ca_file);

    if (error == 0 && curl_easy_getinfo(curl, CURLINFO_CAINFO, &of_system) == CURLE_OK && of_system != NULL)
        append_file(&blob, of_system); /* a system that has none trusts the file only */
    if (error == 0 && curl_easy_setopt(curl, CURLOPT_CAINFO_BLOB, &blob) != CURLE_OK)
        error = ENOMEM;
    free(blob.data);
    return error;
}

/* ---- Sending ------------------------------------------------------------------------------------------------ */

bool alerts_url_is_valid(const char *url)
{
    CURLU *parts = curl_url();
    char *scheme = NULL;
    bool valid = parts != NULL && curl_url_set(parts, CURLUPART_URL, url, 0) == CURLUE_OK &&
                 curl_url_get(parts, CURLUPART_SCHEME, &scheme, 0) == CURLUE_OK &&
                 (strcmp(scheme, "http") == 0 || strcmp(scheme, "https") == 0);

    curl_free(scheme);
    curl_url_cleanup(parts);
    return valid;
}

/* A webhook answers "ok", or says what is wrong; the status is enough. A longer answer ends the transfer: the status
 * has arrived by then. */
static size_t discard(char *bytes, size_t size, size_t count, void *context)
{
    struct alerts *alerts = context;

    (void)bytes;
    alerts->answered += size * count;
    return alerts->answered <= LONGEST_ANSWER ? size * count : CURL_WRITEFUNC_ERROR;
}

/* libcurl calls it at least once a second. Anything but 0 ends the transfer. */
static int end_at_deadline(void *context, curl_off_t down, curl_off_t downloaded, curl_off_t up, curl_off_t uploaded)
{
    struct alerts *alerts = context;
    bool over;

    (void)down;
    (void)downloaded;
    (void)up;
    (void)uploaded;
    pthread_mutex_lock(&alerts->lock);
    over = alerts->stopping && monotonic_ms() >= alerts->deadline_ms;
    pthread_mutex_unlock(&alerts->lock);
    return over;
}

/* The options that are the same for all messages. Returns 0, or an errno. */
static int set_up_transfer(struct alerts *alerts)
{
    CURL *curl = alerts->curl;
    struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
    bool all = headers != NULL;

    alerts->headers = headers;
    all = all && curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers) == CURLE_OK;
    all = all && curl_easy_setopt(curl, CURLOPT_URL, alerts->url) == CURLE_OK;
    all = all && curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https") == CURLE_OK;
    all = all && curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L) == CURLE_OK;
    all = all && curl_easy_setopt(curl, CURLOPT_USERAGENT, "tcp_trace/" TCPEVENT_VERSION) == CURLE_OK;
    all = all && curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, (long)CONNECT_TIMEOUT_MS) == CURLE_OK;
    all = all && curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, discard) == CURLE_OK;
    all = all && curl_easy_setopt(curl, CURLOPT_WRITEDATA, alerts) == CURLE_OK;
    all = all && curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, end_at_deadline) == CURLE_OK;
    all = all && curl_easy_setopt(curl, CURLOPT_XFERINFODATA, alerts) == CURLE_OK;
    all = all && curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L) == CURLE_OK;
    /* No signals for timeouts, and no waiting for a silent name server after them. */
    all = all && curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L) == CURLE_OK;
    all = all && curl_easy_setopt(curl, CURLOPT_QUICK_EXIT, 1L) == CURLE_OK;
    if (!all)
        return ENOMEM;
    return alerts->ca_file != NULL ? add_authorities(curl, alerts->ca_file) : 0;
}

/* Posts the message. Returns the HTTP status, or 0 and the reason why there is none. */
static long post_message(struct alerts *alerts, const char **reason)
{
    CURL *curl = alerts->curl;
    struct text message = TEXT_IN(alerts->message);
    struct text body = TEXT_IN(alerts->body);
    char host_storage[1024];
    struct text host = TEXT_IN(host_storage);
    int64_t timeout_ms = TIMEOUT_MS;
    long status = 0;
    CURLcode code;

    put_host(&host);
    summary_put_message(&message, &alerts->sending, &alerts->told, host.data);
    put_body(&body, message.data);

    pthread_mutex_lock(&alerts->lock);
    if (alerts->stopping && alerts->deadline_ms - monotonic_ms() < timeout_ms)
        timeout_ms = alerts->deadline_ms - monotonic_ms();
    pthread_mutex_unlock(&alerts->lock);

    curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, timeout_ms > 0 ? (long)timeout_ms : 1L);
    curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body.data);
    curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)body.length);
    alerts->answered = 0;
    code = curl_easy_perform(curl);
    /* Not CURLOPT_ERRORBUFFER: its text may name the URL, which is a secret. */
    *reason = code == CURLE_ABORTED_BY_CALLBACK ? "no answer before the end" : curl_easy_strerror(code);
    /* With a status the message has arrived, even if the rest of the answer never comes. */
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    return status >= 200 ? status : 0;
}

/* Adds up to a tenth, so that the monitors of many hosts do not retry all at once. */
static int64_t with_jitter(int64_t wait_ms)
{
    uint32_t random = 0;

    if (getrandom(&random, sizeof random, GRND_NONBLOCK) < 0)
        random = 0;
    return wait_ms + (int64_t)(random % 1001) * wait_ms / 10000;
}

static int64_t to_seconds(int64_t ms)
{
    return (ms + 500) / 1000;
}

static void end_outage(struct alerts *alerts, int64_t now_ms)
{
    alerts->outage = false;
    alerts->retry_ms = FIRST_RETRY_MS;
    alerts->next_ms = now_ms + MESSAGE_PAUSE_MS;
    alerts->wait_is_slacks = false;
    summary_clear(&alerts->sending);
}

static void try_again_later(struct alerts *alerts, int64_t now_ms, long status, const char *reason)
{
    curl_off_t wish_s = 0; /* Retry-After, in either form */
    int64_t wait_ms;
    bool in_time;

    if (status == HTTP_TOO_MANY_REQUESTS)
        curl_easy_getinfo(alerts->curl, CURLINFO_RETRY_AFTER, &wish_s);
    alerts->wait_is_slacks = wish_s > 0;
    if (alerts->wait_is_slacks) {
        wait_ms = (wish_s < LONGEST_RETRY_AFTER_S ? wish_s : LONGEST_RETRY_AFTER_S) * 1000;
    } else {
        wait_ms = with_jitter(alerts->retry_ms);
        alerts->retry_ms = alerts->retry_ms * 2 < LAST_RETRY_MS ? alerts->retry_ms * 2 : LAST_RETRY_MS;
    }
    alerts->next_ms = now_ms + wait_ms;

    if (alerts->outage)
        return;
    alerts->outage = true;
    alerts->outage_since_ms = now_ms;
    pthread_mutex_lock(&alerts->lock);
    in_time = !alerts->stopping || alerts->next_ms < alerts->deadline_ms;
    pthread_mutex_unlock(&alerts->lock);
    if (in_time)
        log_post(alerts->log, LOG_WARNING, "Slack alert not delivered: %s; trying again in %" PRId64 " s", reason,
                 to_seconds(wait_ms));
    else
        log_post(alerts->log, LOG_WARNING, "Slack alert not delivered: %s", reason);
}

static void send_summary(struct alerts *alerts)
{
    uint64_t failures = alerts->sending.failures;
    char status_text[32];
    const char *reason;
    long status = post_message(alerts, &reason);
    int64_t now_ms = monotonic_ms();

    if (status >= 200 && status < 300) {
        if (alerts->outage)
            log_post(alerts->log, LOG_NOTICE,
                     "Slack alerts are delivered again after %" PRId64 " s: %" PRIu64 " failures in one message",
                     to_seconds(now_ms - alerts->outage_since_ms), failures);
        told_add(&alerts->told, &alerts->sending);
        end_outage(alerts, now_ms);
        return;
    }
    if (status != 0) {
        snprintf(status_text, sizeof status_text, "HTTP status %ld", status);
        reason = status_text;
    }
    if (status == 0 || status == HTTP_TOO_MANY_REQUESTS || status >= 500) {
        try_again_later(alerts, now_ms, status, reason);
        return;
    }
    log_post(alerts->log, LOG_WARNING, "Slack refused an alert of %" PRIu64 " failures: %s; it is dropped", failures,
             reason);
    alerts->refused += failures;
    end_outage(alerts, now_ms);
}

/* ---- The thread --------------------------------------------------------------------------------------------- */

static void wait_until(struct alerts *alerts, int64_t ms)
{
    struct timespec until = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};

    pthread_cond_timedwait(&alerts->changed, &alerts->lock, &until);
}

/* Waits until there is a failure to send, and its time has come. False at the end. Called with the lock held. */
static bool wait_for_failures(struct alerts *alerts)
{
    bool was_stopping = alerts->stopping;

    for (;;) {
        bool any = alerts->sending.failures + alerts->pending.failures > 0;
        int64_t now_ms = monotonic_ms();

        /* One last attempt, rather than a wait that the end would cut off. */
        if (alerts->stopping && !was_stopping && alerts->outage && !alerts->wait_is_slacks)
            alerts->next_ms = now_ms;
        was_stopping = alerts->stopping;

        if (alerts->stopping && (!any || now_ms >= alerts->deadline_ms || alerts->next_ms >= alerts->deadline_ms))
            return false;
        if (!any)
            pthread_cond_wait(&alerts->changed, &alerts->lock);
        else if (now_ms < alerts->next_ms)
            wait_until(alerts, alerts->next_ms);
        else
            return true;
    }
}

static void *send_alerts(void *argument)
{
    struct alerts *alerts = argument;

    pthread_mutex_lock(&alerts->lock);
    while (wait_for_failures(alerts)) {
        summary_merge(&alerts->sending, &alerts->pending);
        pthread_mutex_unlock(&alerts->lock);
        send_summary(alerts);
        pthread_mutex_lock(&alerts->lock);
    }
    pthread_mutex_unlock(&alerts->lock);
    return NULL;
}

void alerts_add(struct alerts *alerts, const struct failure *failure)
{
    pthread_mutex_lock(&alerts->lock);
    summary_add(&alerts->pending, failure);
    /* After the first one the thread is awake, or knows when to wake up. */
    if (alerts->pending.failures == 1)
        pthread_cond_signal(&alerts->changed);
    pthread_mutex_unlock(&alerts->lock);
}

void alerts_add_lost(struct alerts *alerts, uint64_t events)
{
    pthread_mutex_lock(&alerts->lock);
    alerts->pending.lost += events;
    pthread_mutex_unlock(&alerts->lock);
}

/* ---- Beginning and end -------------------------------------------------------------------------------------- */

static void free_alerts(struct alerts *alerts)
{
    curl_slist_free_all(alerts->headers);
    curl_easy_cleanup(alerts->curl);
    curl_global_cleanup();
    pthread_cond_destroy(&alerts->changed);
    pthread_mutex_destroy(&alerts->lock);
    free(alerts);
}

struct alerts *alerts_start(const char *url, const char *ca_file, struct log *log)
{
    struct alerts *alerts = calloc(1, sizeof *alerts);
    pthread_condattr_t attributes;
    int error;

    if (alerts == NULL)
        return NULL;
    alerts->log = log;
    alerts->url = url;
    alerts->ca_file = ca_file;
    alerts->retry_ms = FIRST_RETRY_MS;
    pthread_mutex_init(&alerts->lock, NULL);
    /* Setting the clock must not shorten or lengthen a wait. */
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&alerts->changed, &attributes);
    pthread_condattr_destroy(&attributes);

    curl_global_init(CURL_GLOBAL_DEFAULT);
    alerts->curl = curl_easy_init();
    error = alerts->curl == NULL ? ENOMEM : set_up_transfer(alerts);
    if (error == 0)
        error = pthread_create(&alerts->thread, NULL, send_alerts, alerts);
    if (error != 0) {
        free_alerts(alerts);
        errno = error;
        return NULL;
    }
    return alerts;
}

struct alerts_undone alerts_stop(struct alerts *alerts)
{
    struct alerts_undone undone;

    pthread_mutex_lock(&alerts->lock);
    alerts->stopping = true;
    alerts->deadline_ms = monotonic_ms() + LAST_ALERTS_PATIENCE_MS;
    pthread_cond_signal(&alerts->changed);
    pthread_mutex_unlock(&alerts->lock);
    pthread_join(alerts->thread, NULL);
    undone.refused = alerts->refused;
    undone.undelivered = alerts->sending.failures + alerts->pending.failures;
    free_alerts(alerts);
    return undone;
}
