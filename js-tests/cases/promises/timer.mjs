// @reply after the timer
export default () => new Promise((resolve) => setTimeout(resolve, 5, 'after the timer'));
