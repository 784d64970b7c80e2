/* A libnvidia-ml.so.1 for machines without a GPU: the real Python binding loads it and can't tell.
 *
 * It plays what a script says, and reads the script anew at each call, so a test changes the world while the program
 * under test runs. The environment names two files:
 *
 *   FAKE_NVML_SCRIPT  a line each, in any order; replace the file by a rename, so that no call sees half of it
 *       init STATE
 *       gpu INDEX STATE TOTAL_MIB USED_MIB UTILISATION_PERCENT POWER_MILLIWATTS TEMPERATURE_CELSIUS
 *       hang INDEX UNIX_TIME            each call of that GPU hangs until then
 *       fails INDEX FUNCTION ERROR      that function of that GPU gives that NVML error
 *       process INDEX PID MIB KIND      KIND is compute or graphics; MIB -1: not told
 *       link INDEX LINK PEER            an active NVLink to GPU number PEER, or to a switch: -1
 *       ecc INDEX COUNT                 uncorrected errors; without the line: the GPU has no ECC
 *       xid INDEX SEQUENCE CODE         an event; told once to each who registered before it was in the script.
 *                                       SEQUENCE goes up
 *   FAKE_NVML_CALLS   optional: each call is appended to it as "FUNCTION INDEX" (INDEX -1: of no GPU)
 *
 * STATE is 0 (well), an NVML error number (9: driver not loaded, 15: GPU is lost, ...), or -1: the call hangs, until
 * the script says otherwise. A figure of -1 is not supported by that GPU. The number of gpu lines, counted at
 * nvmlInit, is the number of GPUs; their indices go from 0 up.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    HANG = -1, OK = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, TIMEOUT = 10,
    MAX_GPUS = 64, MAX_LINES = 256, MAX_LINKS = 18, TELLS_XIDS = 8, REMOTE_IS_GPU = 0, REMOTE_IS_SWITCH = 2
};
typedef struct { int index; } *device_t;
struct gpu { int state; long total_mib, used_mib, utilisation, power, temperature, ecc; double hangs_until; };
struct process { int gpu; unsigned pid; long mib; int draws; };
struct link { int gpu, number, peer; };
struct xid { int gpu; long sequence, code; };
struct failure { int gpu, error; char function[64]; };
struct world {
    int init_state, count, processes, links, xids, failures;
    struct gpu gpus[MAX_GPUS];
    struct process process[MAX_LINES];
    struct link link[MAX_LINES];
    struct xid xid[MAX_LINES];
    struct failure failure[MAX_LINES];
};

static struct { int index; } devices[MAX_GPUS];

static void read_line(struct world *world, const char *line) {
    struct gpu g = {0};
    struct process p = {0};
    struct link k;
    struct xid x;
    struct failure f;
    char kind[16];
    int index;
    long count;
    double until;
    if (sscanf(line, "init %d", &world->init_state) == 1) return;
    if (sscanf(line, "gpu %d %d %ld %ld %ld %ld %ld", &index, &g.state, &g.total_mib, &g.used_mib, &g.utilisation,
               &g.power, &g.temperature) == 7 && index >= 0 && index < MAX_GPUS) {
        g.ecc = world->gpus[index].ecc;
        g.hangs_until = world->gpus[index].hangs_until;
        world->gpus[index] = g;
        if (index >= world->count) world->count = index + 1;
    } else if (sscanf(line, "hang %d %lf", &index, &until) == 2 && index >= 0 && index < MAX_GPUS) {
        world->gpus[index].hangs_until = until;
    } else if (sscanf(line, "ecc %d %ld", &index, &count) == 2 && index >= 0 && index < MAX_GPUS) {
        world->gpus[index].ecc = count;
    } else if (sscanf(line, "process %d %u %ld %15s", &p.gpu, &p.pid, &p.mib, kind) == 4) {
        p.draws = !strcmp(kind, "graphics");
        if (world->processes < MAX_LINES) world->process[world->processes++] = p;
    } else if (sscanf(line, "link %d %d %d", &k.gpu, &k.number, &k.peer) == 3) {
        if (world->links < MAX_LINES) world->link[world->links++] = k;
    } else if (sscanf(line, "xid %d %ld %ld", &x.gpu, &x.sequence, &x.code) == 3) {
        if (world->xids < MAX_LINES) world->xid[world->xids++] = x;
    } else if (sscanf(line, "fails %d %63s %d", &f.gpu, f.function, &f.error) == 3) {
        if (world->failures < MAX_LINES) world->failure[world->failures++] = f;
    }
}

static void read_script(struct world *world) {
    char line[256];
    memset(world, 0, sizeof *world);
    for (int i = 0; i < MAX_GPUS; i++) world->gpus[i].ecc = -1;
    const char *path = getenv("FAKE_NVML_SCRIPT");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file) return;
    while (fgets(line, sizeof line, file)) read_line(world, line);
    fclose(file);
}

static void note(const char *function, int index) {
    const char *path = getenv("FAKE_NVML_CALLS");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (!file) return;
    fprintf(file, "%s %d\n", function, index);
    fclose(file);
}

static double unix_time(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* Note the call, hang if the script says so, and give the state of GPU number index (or of the driver: -1). */
static int enter(const char *function, int index, struct world *world) {
    note(function, index);
    for (;;) {
        read_script(world);
        int state = index < 0 ? world->init_state : world->gpus[index].state;
        if (state != HANG && (index < 0 || unix_time() >= world->gpus[index].hangs_until)) {
            for (int i = 0; i < world->failures && !state; i++)
                if (world->failure[i].gpu == index && !strcmp(world->failure[i].function, function))
                    state = world->failure[i].error;
            return state;
        }
        usleep(10000);
    }
}

static int enter_gpu(const char *function, device_t device, struct gpu *gpu) {
    struct world world;
    int state = enter(function, device->index, &world);
    *gpu = world.gpus[device->index];
    return state;
}

int nvmlInitWithFlags(unsigned flags) {
    struct world world;
    (void)flags;
    return enter(__func__, -1, &world);
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
    note(__func__, -1);
    return OK;
}

const char *nvmlErrorString(int code) {
    static char text[32];
    snprintf(text, sizeof text, "fake error %d", code);
    return text;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    struct world world;
    int state = enter(__func__, -1, &world);
    *count = (unsigned)world.count;
    return state;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, device_t *device) {
    struct world world;
    if (index >= MAX_GPUS) return INVALID_ARGUMENT;
    int state = enter(__func__, (int)index, &world);
    if ((int)index >= world.count) return INVALID_ARGUMENT;
    devices[index].index = (int)index;
    *device = (device_t)&devices[index];
    return state;
}

int nvmlDeviceGetUUID(device_t device, char *uuid, unsigned length) {
    struct gpu gpu;
    int state = enter_gpu(__func__, device, &gpu);
    if (state) return state;
    snprintf(uuid, length, "GPU-%08x-0000-4000-8000-000000000000", device->index);
    return OK;
}

int nvmlDeviceGetName(device_t device, char *name, unsigned length) {
    struct gpu gpu;
    int state = enter_gpu(__func__, device, &gpu);
    if (state) return state;
    snprintf(name, length, "Simulated GPU");
    return OK;
}

struct memory { unsigned long long total, free, used; };
struct memory_v2 { unsigned version; unsigned long long total, reserved, free, used; };

int nvmlDeviceGetMemoryInfo(device_t device, struct memory *memory) {
    struct gpu gpu;
    int state = enter_gpu(__func__, device, &gpu);
    if (state) return state;
    if (gpu.total_mib < 0) return NOT_SUPPORTED;
    memory->total = (unsigned long long)gpu.total_mib << 20;
    memory->used = (unsigned long long)gpu.used_mib << 20;
    memory->free = memory->total - memory->used;
    return OK;
}

int nvmlDeviceGetMemoryInfo_v2(device_t device, struct memory_v2 *memory) {
    struct memory plain;
    int state = nvmlDeviceGetMemoryInfo(device, &plain);
    if (state) return state;
    memory->total = plain.total;
    memory->reserved = 0;
    memory->used = plain.used;
    memory->free = plain.free;
    return OK;
}

int nvmlDeviceGetUtilizationRates(device_t device, unsigned *rates) {
    struct gpu gpu;
    int state = enter_gpu(__func__, device, &gpu);
    if (state) return state;
    if (gpu.utilisation < 0) return NOT_SUPPORTED;
    rates[0] = (unsigned)gpu.utilisation;
    rates[1] = 0;
    return OK;
}

int nvmlDeviceGetPowerUsage(device_t device, unsigned *milliwatts) {
    struct gpu gpu;
    int state = enter_gpu(__func__, device, &gpu);
    if (state) return state;
    if (gpu.power < 0) return NOT_SUPPORTED;
    *milliwatts = (unsigned)gpu.power;
    return OK;
}

int nvmlDeviceGetTemperature(device_t device, int sensor, unsigned *celsius) {
    (void)sensor;
    struct gpu gpu;
    int state = enter_gpu(__func__, device, &gpu);
    if (state) return state;
    if (gpu.temperature < 0) return NOT_SUPPORTED;
    *celsius = (unsigned)gpu.temperature;
    return OK;
}

struct process_info { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; };

static int processes(const char *function, int draws, device_t device, unsigned *count, struct process_info *infos) {
    struct world world;
    int state = enter(function, device->index, &world);
    if (state) return state;
    unsigned room = *count, found = 0;
    for (int i = 0; i < world.processes; i++) {
        const struct process *p = &world.process[i];
        if (p->gpu != device->index || p->draws != draws) continue;
        if (infos && found < room) {
            unsigned long long used = p->mib < 0 ? ~0ULL : (unsigned long long)p->mib << 20;
            infos[found] = (struct process_info){p->pid, used, ~0u, ~0u};
        }
        found++;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : OK;
}

int nvmlDeviceGetComputeRunningProcesses_v3(device_t device, unsigned *count, struct process_info *infos) {
    return processes(__func__, 0, device, count, infos);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(device_t device, unsigned *count, struct process_info *infos) {
    return processes(__func__, 1, device, count, infos);
}

int nvmlDeviceGetTotalEccErrors(device_t device, int kind, int counter, unsigned long long *count) {
    struct gpu gpu;
    int state = enter_gpu(__func__, device, &gpu);
    if (state) return state;
    if (kind != 1 || counter != 0) return INVALID_ARGUMENT; /* uncorrected, volatile */
    if (gpu.ecc < 0) return NOT_SUPPORTED;
    *count = (unsigned long long)gpu.ecc;
    return OK;
}

struct pci_info {
    char bus_id_legacy[16];
    unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
};

static void fill_pci(struct pci_info *info, unsigned domain, int bus) {
    memset(info, 0, sizeof *info);
    info->domain = domain;
    info->bus = (unsigned)bus;
    snprintf(info->bus_id_legacy, sizeof info->bus_id_legacy, "%04X:%02X:00.0", domain, bus);
    snprintf(info->bus_id, sizeof info->bus_id, "%08X:%02X:00.0", domain, bus);
}

int nvmlDeviceGetPciInfo_v3(device_t device, struct pci_info *info) {
    struct gpu gpu;
    int state = enter_gpu(__func__, device, &gpu);
    if (state) return state;
    fill_pci(info, 0, device->index + 1);
    return OK;
}

/* Give the state of that GPU, or of its link: INVALID_ARGUMENT past the last, *link NULL where it is not active. */
static int enter_link(const char *function, device_t device, unsigned number, struct world *world, struct link **link) {
    int state = enter(function, device->index, world);
    *link = NULL;
    if (state) return state;
    int any = 0;
    for (int i = 0; i < world->links; i++) {
        if (world->link[i].gpu != device->index) continue;
        any = 1;
        if (world->link[i].number == (int)number) *link = &world->link[i];
    }
    if (!any) return NOT_SUPPORTED;
    return number < MAX_LINKS ? OK : INVALID_ARGUMENT;
}

int nvmlDeviceGetNvLinkState(device_t device, unsigned number, unsigned *is_active) {
    struct world world;
    struct link *link;
    int state = enter_link(__func__, device, number, &world, &link);
    *is_active = link != NULL;
    return state;
}

int nvmlDeviceGetNvLinkRemoteDeviceType(device_t device, unsigned number, unsigned *type) {
    struct world world;
    struct link *link;
    int state = enter_link(__func__, device, number, &world, &link);
    if (state) return state;
    if (!link) return NOT_SUPPORTED;
    *type = link->peer < 0 ? REMOTE_IS_SWITCH : REMOTE_IS_GPU;
    return OK;
}

int nvmlDeviceGetNvLinkRemotePciInfo_v2(device_t device, unsigned number, struct pci_info *info) {
    struct world world;
    struct link *link;
    int state = enter_link(__func__, device, number, &world, &link);
    if (state) return state;
    if (!link) return NOT_SUPPORTED;
    fill_pci(info, link->peer < 0 ? 1 : 0, link->peer + 1);
    return OK;
}

struct event_set { int registered; long seen[MAX_GPUS]; };
struct event_data { device_t device; unsigned long long type, data; unsigned gpu_instance, compute_instance; };

int nvmlDeviceGetSupportedEventTypes(device_t device, unsigned long long *types) {
    struct gpu gpu;
    int state = enter_gpu(__func__, device, &gpu);
    *types = TELLS_XIDS;
    return state;
}

int nvmlEventSetCreate(struct event_set **set) {
    note(__func__, -1);
    *set = calloc(1, sizeof **set);
    for (int i = 0; i < MAX_GPUS; i++) (*set)->seen[i] = -1; /* -1: not registered */
    return OK;
}

int nvmlDeviceRegisterEvents(device_t device, unsigned long long types, struct event_set *set) {
    struct world world;
    int state = enter(__func__, device->index, &world);
    if (state) return state;
    if (types != TELLS_XIDS) return NOT_SUPPORTED;
    set->seen[device->index] = 0;
    for (int i = 0; i < world.xids; i++)
        if (world.xid[i].gpu == device->index && world.xid[i].sequence > set->seen[device->index])
            set->seen[device->index] = world.xid[i].sequence;
    note("registered", device->index); /* from now on, an XID in the script is told */
    return OK;
}

/* As the real one: a registered GPU that is lost, or hangs, makes it fail, or hang, at once. */
int nvmlEventSetWait_v2(struct event_set *set, struct event_data *event, unsigned timeout_ms) {
    double deadline = unix_time() + timeout_ms / 1e3;
    do {
        for (int index = 0; index < MAX_GPUS; index++) {
            struct world world;
            if (set->seen[index] < 0) continue;
            read_script(&world);
            int state = world.gpus[index].state;
            if (state > 0) return state;
            if (state == HANG || unix_time() < world.gpus[index].hangs_until) enter(__func__, index, &world);
            for (int i = 0; i < world.xids; i++) {
                if (world.xid[i].gpu != index || world.xid[i].sequence <= set->seen[index]) continue;
                set->seen[index] = world.xid[i].sequence;
                *event = (struct event_data){
                    (device_t)&devices[index], TELLS_XIDS, (unsigned long long)world.xid[i].code, ~0u, ~0u};
                return OK;
            }
        }
        usleep(20000);
    } while (unix_time() < deadline);
    return TIMEOUT;
}

int nvmlEventSetFree(struct event_set *set) {
    note(__func__, -1);
    free(set);
    return OK;
}
