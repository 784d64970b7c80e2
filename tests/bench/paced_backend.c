/* paced_backend PORT SOCKET...: an OpenAI-like server on loopback and on Unix sockets that costs next to nothing.

   A POST is answered with 603 bytes of JSON. With "stream": true it is answered with "max_tokens" chunks, one every
   "seed" microseconds (both are numbers that every proxy passes on), each due at its own moment from the request's on,
   whatever became of the one before. A chunk's content is ~NANOSECONDS~: when it was due, on CLOCK_MONOTONIC.
   A GET is answered with something that says "ok" and names the model "m". */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { INPUT = 65536, OUTPUT = 2048, ANSWER = 603 };

struct peer {
  int fd, is_listener, is_tcp, is_writing;
  size_t filled, pending; /* bytes in input, bytes in output */
  long left;              /* chunks to send; -1: no stream */
  long long due, gap;     /* ns */
  char *input, output[OUTPUT];
};

static int poller, timer;
static struct peer **heap; /* streams that wait for their next chunk, the earliest first */
static size_t heap_size, heap_room;
static char answer[2048], listing[512];
static size_t answer_size, listing_size;

static void die(const char *what) {
  perror(what);
  exit(1);
}

static long long now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void set_timer(void) {
  static long long set_to;
  long long due = heap_size ? heap[0]->due : 0;
  if (due == set_to) return;
  set_to = due;
  struct itimerspec when = {.it_value = {due / 1000000000LL, due % 1000000000LL}};
  if (timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL)) die("timerfd_settime");
}

static void push(struct peer *p) {
  if (heap_size == heap_room) heap = realloc(heap, (heap_room = heap_room * 2 + 64) * sizeof *heap);
  size_t i = heap_size++;
  for (; i && heap[(i - 1) / 2]->due > p->due; i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
  heap[i] = p;
}

static void take_out(size_t i) {
  struct peer *last = heap[--heap_size];
  if (i == heap_size) return;
  for (; i && heap[(i - 1) / 2]->due > last->due; i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
  for (size_t child; (child = 2 * i + 1) < heap_size; i = child) {
    if (child + 1 < heap_size && heap[child + 1]->due < heap[child]->due) child++;
    if (heap[child]->due >= last->due) break;
    heap[i] = heap[child];
  }
  heap[i] = last;
}

static void watch(struct peer *p, int op, unsigned events) {
  struct epoll_event event = {.events = events, .data.ptr = p};
  if (epoll_ctl(poller, op, p->fd, &event)) die("epoll_ctl");
}

static void drop(struct peer *p) {
  for (size_t i = 0; i < heap_size; i++)
    if (heap[i] == p) {
      take_out(i);
      break;
    }
  close(p->fd);
  free(p->input);
  free(p);
}

/* Send all of it, or keep the rest for later. Returns -1 if the peer is gone (and dropped). */
static int put(struct peer *p, const char *data, size_t size) {
  ssize_t sent = p->pending ? 0 : send(p->fd, data, size, MSG_NOSIGNAL);
  if (sent < 0 && errno != EAGAIN) return drop(p), -1;
  if (sent < 0) sent = 0;
  if ((size_t)sent < size) {
    if (p->pending + size - sent > OUTPUT) return drop(p), -1; /* it sends requests and reads no answers */
    memcpy(p->output + p->pending, data + sent, size - sent);
    p->pending += size - sent;
    if (!p->is_writing) watch(p, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
    p->is_writing = 1;
  }
  return 0;
}

static size_t frame(char *out, const char *event) { return sprintf(out, "%zx\r\n%s\r\n", strlen(event), event); }

static const char *OPENING =
    "data: {\"id\":\"chatcmpl-0123456789\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"m\","
    "\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n";
static const char *CHUNK =
    "data: {\"id\":\"chatcmpl-0123456789\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"m\","
    "\"choices\":[{\"index\":0,\"delta\":{\"content\":\"~%lld~\"},\"finish_reason\":null}]}\n\n";
static const char *ENDING =
    "data: {\"id\":\"chatcmpl-0123456789\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"m\","
    "\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";

static int open_stream(struct peer *p) {
  char out[1024];
  size_t size = sprintf(out, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
                             "Transfer-Encoding: chunked\r\n\r\n");
  size += frame(out + size, OPENING);
  p->due = now_ns() + p->gap;
  push(p);
  return put(p, out, size);
}

/* The next chunk of a stream, which is at the top of the heap. */
static void go_on(struct peer *p) {
  char event[512], out[2048];
  sprintf(event, CHUNK, p->due);
  size_t size = frame(out, event);
  take_out(0);
  if (--p->left == 0) {
    size += frame(out + size, ENDING);
    size += sprintf(out + size, "0\r\n\r\n");
    p->left = -1;
  } else if (!p->pending) {
    p->due += p->gap;
    push(p);
  }
  put(p, out, size);
}

static long number_after(const char *body, const char *key, long otherwise) {
  const char *found = strstr(body, key);
  if (!found) return otherwise;
  found += strlen(key);
  while (*found == ' ' || *found == ':') found++;
  return *found >= '0' && *found <= '9' ? atol(found) : otherwise;
}

/* Where a chunked body ends, or NULL while it doesn't. The body itself is left as it is, framing included. */
static char *end_of_chunks(char *at, char *end) {
  for (;;) {
    char *line = memmem(at, end - at, "\r\n", 2);
    if (!line) return NULL;
    long size = strtol(at, NULL, 16);
    at = line + 2 + size + 2;
    if (at > end) return NULL;
    if (!size) return at;
  }
}

static int serve(struct peer *p) {
  while (p->left < 0 && !p->pending) {
    p->input[p->filled] = 0;
    char *end = memmem(p->input, p->filled, "\r\n\r\n", 4), *stop = p->input + p->filled, kept;
    if (!end) return p->filled == INPUT ? (drop(p), -1) : 0;
    char *body = end + 4, *next = body;
    *end = 0;
    int is_post = p->input[0] == 'P';
    char *length = strcasestr(p->input, "\r\ncontent-length:");
    int is_chunked = strcasestr(p->input, "\r\ntransfer-encoding:") != NULL;
    *end = '\r';
    if (is_chunked) next = end_of_chunks(body, stop);
    else if (length) next = body + atol(length + 17);
    if (!next || next > stop) return p->filled == INPUT ? (drop(p), -1) : 0;
    kept = *next;
    *next = 0;
    int is_stream = is_post && (strstr(body, "\"stream\": true") || strstr(body, "\"stream\":true"));
    p->left = is_stream ? number_after(body, "\"max_tokens\"", 64) : -1;
    p->gap = is_stream ? number_after(body, "\"seed\"", 5000) * 1000LL : 0;
    *next = kept;
    p->filled = stop - next;
    memmove(p->input, next, p->filled);
    if (is_stream) {
      if (open_stream(p)) return -1;
    } else if (put(p, is_post ? answer : listing, is_post ? answer_size : listing_size)) return -1;
  }
  return 0;
}

static void receive(struct peer *p) {
  if (p->filled < INPUT) {
    ssize_t got = recv(p->fd, p->input + p->filled, INPUT - p->filled, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
      drop(p);
      return;
    }
    p->filled += got;
  }
  serve(p);
}

static void flush(struct peer *p) {
  ssize_t sent = send(p->fd, p->output, p->pending, MSG_NOSIGNAL);
  if (sent < 0) {
    if (errno != EAGAIN) drop(p);
    return;
  }
  memmove(p->output, p->output + sent, p->pending -= sent);
  if (p->pending) return;
  p->is_writing = 0;
  watch(p, EPOLL_CTL_MOD, EPOLLIN);
  if (p->left > 0) {
    size_t i = 0;
    while (i < heap_size && heap[i] != p) i++;
    if (i == heap_size) {
      p->due += p->gap;
      push(p);
    }
  } else serve(p);
}

static void welcome(struct peer *listener) {
  int fd;
  while ((fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
    struct peer *p = calloc(1, sizeof *p);
    p->fd = fd;
    p->left = -1;
    p->input = malloc(INPUT + 1);
    int one = 1;
    if (listener->is_tcp) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    watch(p, EPOLL_CTL_ADD, EPOLLIN);
  }
}

static void listen_on(int family, const struct sockaddr *address, socklen_t size) {
  int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(fd, address, size) || listen(fd, 4096)) die("listen");
  struct peer *p = calloc(1, sizeof *p);
  p->fd = fd;
  p->is_listener = 1;
  p->is_tcp = family == AF_INET;
  watch(p, EPOLL_CTL_ADD, EPOLLIN);
}

static void prepare_answers(void) {
  const char *before = "{\"id\": \"chatcmpl-0123456789\", \"object\": \"chat.completion\", \"created\": 1700000000, "
                       "\"model\": \"m\", \"choices\": [{\"index\": 0, \"message\": {\"role\": \"assistant\", "
                       "\"content\": \"";
  const char *after = "\"}, \"finish_reason\": \"stop\"}], \"usage\": {\"prompt_tokens\": 21, \"total_tokens\": 73, "
                      "\"completion_tokens\": 52}}";
  char text[ANSWER + 1];
  memset(text, 'x', ANSWER);
  memcpy(text, before, strlen(before));
  memcpy(text + ANSWER - strlen(after), after, strlen(after) + 1);
  const char *head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s";
  answer_size = sprintf(answer, head, strlen(text), text);
  const char *list = "{\"status\": \"ok\", \"object\": \"list\", \"model_path\": \"m\", "
                     "\"data\": [{\"id\": \"m\", \"object\": \"model\", \"owned_by\": \"bench\"}]}";
  listing_size = sprintf(listing, head, strlen(list), list);
}

int main(int argc, char **argv) {
  if (argc < 3) return fprintf(stderr, "usage: paced_backend PORT SOCKET...\n"), 2;
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  poller = epoll_create1(EPOLL_CLOEXEC);
  timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  struct peer clock = {.fd = timer};
  watch(&clock, EPOLL_CTL_ADD, EPOLLIN);
  prepare_answers();
  struct sockaddr_in place = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
  place.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  listen_on(AF_INET, (struct sockaddr *)&place, sizeof place);
  for (int i = 2; i < argc; i++) {
    struct sockaddr_un path = {.sun_family = AF_UNIX};
    snprintf(path.sun_path, sizeof path.sun_path, "%s", argv[i]);
    listen_on(AF_UNIX, (struct sockaddr *)&path, sizeof path);
  }
  struct epoll_event events[256];
  for (;;) {
    set_timer();
    int count = epoll_wait(poller, events, 256, -1);
    if (count < 0 && errno != EINTR) die("epoll_wait");
    for (int i = 0; i < count; i++) {
      struct peer *p = events[i].data.ptr;
      if (p == &clock) {
        unsigned long long fired;
        if (read(timer, &fired, sizeof fired) < 0 && errno != EAGAIN) die("read");
      } else if (p->is_listener) welcome(p);
      else if (events[i].events & EPOLLOUT) flush(p);
      else receive(p);
    }
    for (long long now = now_ns(); heap_size && heap[0]->due <= now;) go_on(heap[0]);
  }
}
